"""The command: search, decode, train, eval, predict, demo, export, profile, sample, study, ...

    python auto_deeplab/train.py --mode=search --flagfile=auto_deeplab/configs/search_cityscapes.cfg

It parses the flags (modes/flag_definitions.py), checks that they are the mode's, and calls the
mode's function with their values. Below it nothing reads flags.
"""

import json
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    if not __package__:
        # Python puts this file's folder first; modules are found from the repository's root.
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from absl import flags

    from auto_deeplab.modes import mode_flags
    from official.command_line import answer_help, errors_in_one_line
    from official.quiet import import_tensorflow

    with errors_in_one_line():  # before TensorFlow takes its seconds
        answer_help(partial(mode_flags.explain_flags, flags.FLAGS))
    import_tensorflow()

import tensorflow as tf
from absl import flags

from auto_deeplab.modes import (
    compare,
    decode,
    demo,
    draw,
    evaluate,
    export,
    flag_definitions,
    mode_flags,
    predict,
    profile,
    sample,
    search,
    study,
    train,
)
from auto_deeplab.modes.data import Batches, Compilation, Data, Devices, Reports
from auto_deeplab.modes.flag_definitions import CONFIGS, DEFAULTS, MODES
from auto_deeplab.modes.mode_flags import Kind
from auto_deeplab.modes.ranking import Ranking
from auto_deeplab.runs.run_record import NETWORK_SHAPE, OtherRunError
from official.command_line import run_app
from official.errors import RunError, UsageError, explain
from official.flagfiles import locate

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(flag_definitions)

MEMORY_REMEDY = dict.fromkeys(MODES, "the images are too large for this device") | dict.fromkeys(
    ("search", "train"),
    "give a smaller --batch_size or --crop_size (evaluation takes whole images, whatever the crop)",
)
MEMORY_REMEDY |= {
    "predict": "give a smaller --batch_size, or --tile and --overlap",
    "profile": "give a smaller --crop_size or --filter_multiplier",
}


def start_app() -> None:
    """Runs the command line: see command_line.run_app."""
    run_app(main, help_text=partial(mode_flags.explain_flags, FLAGS), flagfile_directories=CONFIGS)


def main() -> None:
    """Checks the flags and runs the mode."""
    if FLAGS.mode is None:
        raise UsageError(f"--mode is needed: one of {', '.join(MODES)}")
    for name, value in DEFAULTS.get(FLAGS.mode, {}).items():
        FLAGS.set_default(name, value)
    mode_flags.check(locate(sys.argv[1:], also=CONFIGS), FLAGS)
    try:
        run_mode()
    except OtherRunError as error:
        raise mode_flags.explain_other_run(error, FLAGS, sys.argv) from None
    except tf.errors.ResourceExhaustedError as error:
        if "No space left" in error.message:  # a full disk
            raise RunError(explain(error)) from None
        raise RunError(f"out of memory: {MEMORY_REMEDY[FLAGS.mode]}") from None
    except Exception as error:
        error.add_note(f"--mode={FLAGS.mode}")
        raise


def run_mode() -> None:
    """Calls the mode's function; fields and arguments are called as their flags are."""

    def of(kind: type[Kind]) -> Kind:
        return mode_flags.read(kind, FLAGS)

    command = ("python", sys.argv[0])
    match FLAGS.mode:
        case "search":
            search.search(
                *(FLAGS.model_dir, of(Data), of(Batches)),
                space=of(search.SearchSpace),
                schedule=of(search.SearchSchedule),
                cost_limit=of(search.CostLimit),
                class_weights=FLAGS.class_weights,
                devices=of(Devices),
                compilation=of(Compilation),
                recompute=FLAGS.recompute,
                reports=of(Reports),
                alpha_hessian_batches=FLAGS.alpha_hessian_batches,
                seed=FLAGS.seed,
                checkpoint=FLAGS.checkpoint,
                flagfile=mode_flags.format_flagfile("search", FLAGS),
                command=command,
            )
        case "decode":
            decode.decode(FLAGS.model_dir, checkpoint=FLAGS.checkpoint)
        case "train":
            train.train(
                *(FLAGS.model_dir, of(Data), of(Batches), FLAGS.genotype),
                network=of(train.NetworkOptions),
                schedule=of(train.TrainSchedule),
                pixel_weights=of(train.PixelWeights),
                devices=of(Devices),
                compilation=of(Compilation),
                reports=of(Reports),
                seed=FLAGS.seed,
                checkpoint=FLAGS.checkpoint,
                flagfile=mode_flags.format_flagfile("train", FLAGS),
                command=command,
            )
        case "eval":
            evaluate.evaluate(
                *(FLAGS.model_dir, of(Data)),
                views=of(evaluate.Views),
                max_eval_images=FLAGS.max_eval_images,
                output=FLAGS.output,
                show=lambda metrics: print(json.dumps(metrics), flush=True),
                devices=of(Devices),
                checkpoint=FLAGS.checkpoint,
            )
        case "predict":
            predict.predict(
                *(FLAGS.model_dir, FLAGS.output_dir),
                input=FLAGS.input,
                data=of(Data) if FLAGS.data_dir else None,
                num_classes=FLAGS.num_classes,
                views=of(evaluate.Views),
                predict_scale=FLAGS.predict_scale,
                portions=of(predict.Portions),
                save_probabilities=FLAGS.save_probabilities,
                submission=FLAGS.submission,
                max_pixels=FLAGS.max_pixels,
                devices=of(Devices),
                checkpoint=FLAGS.checkpoint,
            )
        case "demo":
            demo.demo(
                FLAGS.model_dir,
                data=of(Data) if FLAGS.data_dir else None,
                port=FLAGS.port,
                predict_scale=FLAGS.predict_scale,
                max_pixels=FLAGS.max_pixels,
                num_classes=FLAGS.num_classes,
                devices=of(Devices),
                checkpoint=FLAGS.checkpoint,
            )
        case "export":
            exported = export.export(
                FLAGS.model_dir,
                export_dir=FLAGS.export_dir,
                form=of(export.Form),
                data=of(Data) if FLAGS.data_dir else None,
                max_eval_images=FLAGS.max_eval_images,
                predict_scale=FLAGS.predict_scale,
                max_pixels=FLAGS.max_pixels,
                num_classes=FLAGS.num_classes,
                devices=of(Devices),
                checkpoint=FLAGS.checkpoint,
            )
            print(json.dumps(exported))
        case "sample":
            given = mode_flags.read_given(("operations", "num_layers", "num_blocks"), FLAGS)
            samples = sample.sample(
                FLAGS.output_dir,
                num_samples=FLAGS.num_samples,
                seed=FLAGS.seed,
                space=sample.Space(**given) if given else None,
                model_dir=FLAGS.model_dir,
                checkpoint=FLAGS.checkpoint,
                sample_best=FLAGS.sample_best,
                candidates=FLAGS.candidates,
                cost_table=FLAGS.cost_table,
                cost_budget=FLAGS.cost_budget,
                ranking=Ranking(
                    of(Data),
                    batch_norm_batches=FLAGS.batch_norm_batches,
                    steps=FLAGS.ranking_steps,
                    max_eval_images=FLAGS.max_eval_images,
                )
                if FLAGS.data_dir
                else None,
            )
            print(json.dumps(samples))
        case "compare":
            found = compare.compare(
                FLAGS.runs, output=FLAGS.output, latency=FLAGS.latency, ranking=FLAGS.ranking
            )
            print(json.dumps(found))
        case "study":
            study.study(
                *(FLAGS.model_dir, of(study.Plan)),
                print_commands=FLAGS.print_commands,
                command=(sys.executable, sys.argv[0]),
            )
        case "draw":
            draw.draw(FLAGS.genotype, FLAGS.output)
        case "profile" if FLAGS.cost_table:
            costs = profile.measure_costs(
                *(FLAGS.cost_table, of(profile.Pieces)),
                num_layers=FLAGS.num_layers,
                cost_metric=FLAGS.cost_metric,
                devices=of(Devices),
            )
            print(json.dumps(costs))
        case "profile":
            cost = profile.profile(
                *(FLAGS.genotype, FLAGS.model_dir),
                network=mode_flags.read_given(NETWORK_SHAPE, FLAGS),
                num_classes=mode_flags.read_given(("num_classes",), FLAGS).get("num_classes"),
                crop_size=mode_flags.read_given(("crop_size",), FLAGS).get("crop_size"),
                latency=FLAGS.latency,
                devices=of(Devices),
            )
            print(json.dumps(cost))


if __name__ == "__main__":
    start_app()
