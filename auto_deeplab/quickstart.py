"""The whole road on toy street scenes, by the commands that a user would type.

    python auto_deeplab/quickstart.py --output_dir=build/quickstart

Paints scenes, converts, searches, retrains, evaluates, draws predictions, exports a SavedModel
and asks it one question in a process that has TensorFlow alone. Prints each command before it runs,
and at the end the paths, the mIoU and the time of each stage. Given again after an interruption, it
goes on where it stopped.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What a server does with the SavedModel; nothing of this project is imported.
ASK = """
import sys, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
picture = tf.io.read_file(sys.argv[2])
labels = model.signatures["serve_bytes"](image_bytes=picture[None])["labels"]
names = open(sys.argv[1] + "/assets/labels.txt").read().splitlines()
shares = tf.math.bincount(tf.cast(labels, tf.int32), minlength=len(names)) / tf.size(labels)
top = tf.argsort(shares, direction="DESCENDING")[:4].numpy()
print("answer:", labels.dtype.name, tuple(labels.shape),
      ", ".join(f"{names[i]} {float(shares[i]):.0%}" for i in top))
"""


def main() -> None:
    """Runs all stages in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("build/quickstart"))
    out = parser.parse_args().output_dir.resolve()
    if out.is_relative_to(ROOT):
        out = out.relative_to(ROOT)  # where the commands run, and shorter to read
    scenes, half, full = out / "scenes", out / "data_half", out / "data"
    found, trained, pictures = out / "search", out / "train", out / "predictions"
    images = scenes / "leftImg8bit" / "val" / "toyville"
    tools = [sys.executable, "-m"]
    train = [sys.executable, "auto_deeplab/train.py"]
    configs = Path("auto_deeplab/configs")
    convert = [*tools, "tfrecords_tools.convert", "--dataset=cityscapes", f"--source_dir={scenes}"]
    stages: list[tuple[str, Path | None, list[str]]] = [
        ("paint scenes", scenes, [*tools, "tfrecords_tools.toy_scenes", f"--output_dir={scenes}"]),
        ("convert", full, [*convert, f"--output_dir={full}"]),
        ("convert, half size", half, [*convert, f"--output_dir={half}", "--resize_factor=0.5"]),
        (
            "check",
            None,
            [
                *tools,
                "tfrecords_tools.check",
                f"--data_dir={full}",
                f"--figure={out / 'classes.png'}",
            ],
        ),
        (
            "search",
            found / "genotype.json",
            [
                *(*train, "--mode=search", f"--flagfile={configs / 'quickstart_search.cfg'}"),
                *(f"--data_dir={half}", f"--model_dir={found}"),
            ],
        ),
        (
            "train",
            None,
            [
                *(*train, "--mode=train", f"--flagfile={configs / 'quickstart_train.cfg'}"),
                *(f"--genotype={found / 'genotype.json'}",),
                *(f"--data_dir={full}", f"--model_dir={trained}"),
            ],
        ),
        (
            "evaluate",
            None,
            [*train, "--mode=eval", f"--data_dir={full}", f"--model_dir={trained}"],
        ),
        (
            "predict",
            None,
            [
                *(*train, "--mode=predict", f"--model_dir={trained}"),
                *(f"--input={images}", f"--output_dir={pictures}"),
            ],
        ),
        (
            "export",
            trained / "export" / "1",
            [*train, "--mode=export", f"--model_dir={trained}"],
        ),
        (
            "serve",
            None,
            [sys.executable, "-I", "-c", ASK, str(trained / "export" / "1")],
        ),
    ]
    out.mkdir(parents=True, exist_ok=True)
    times = []
    for name, product, command in stages:
        if name == "serve":
            command.append(str(min(images.glob("*.png"))))
        if product is not None and product.exists():
            print(f"== {name}: done before, {product}", flush=True)
            continue
        shown = "python -I -c ..." if name == "serve" else shlex.join(["python", *command[1:]])
        print(f"\n== {name}: {shown}", flush=True)
        start = time.monotonic()
        # TensorFlow alone talks of itself on stderr; the other commands know how to silence it.
        heard = subprocess.PIPE if name == "serve" else None
        done = subprocess.run(command, cwd=ROOT, stderr=heard)
        if done.returncode != 0:
            sys.stderr.write((done.stderr or b"").decode())
            sys.exit(f"error: the stage {name!r} failed; its message stands above")
        times.append((name, time.monotonic() - start))

    metrics = json.loads((trained / "metrics.json").read_text())
    print("\n== done")
    for name, seconds in [*times, ("all", sum(seconds for _, seconds in times))]:
        print(f"{name:<20}{seconds:8.0f} s")
    for name, path in (
        ("genotype", found / "genotype.json"),
        ("its pictures", found / "figures"),
        ("predictions", pictures),
        ("metrics", trained / "metrics.json"),
        ("SavedModel", trained / "export" / "1"),
    ):
        print(f"{name:<20}{path}")
    print(
        f"mIoU of the classes present, {metrics['num_images']} held-out scenes: "
        f"{metrics['miou_present']:.3f}"
    )


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # Python puts this file's folder first
    from official.errors import errors_in_one_line

    with errors_in_one_line():
        main()
