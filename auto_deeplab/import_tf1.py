"""Imports a TF1 checkpoint of the authors' network (DeepLab's model variant `nas_hnasnet`).

    python -m auto_deeplab.import_tf1 --checkpoint=model.ckpt-1500000 --output_dir=DIR

DIR is then like the --model_dir of a finished training: for eval, predict, export, profile,
auto_deeplab.load, and --init_checkpoint. Every variable of the network is in the checkpoint, in the
same shape, and the checkpoint has no others, or nothing is written.
"""

if __name__ == "__main__":
    from official.quiet import import_tensorflow

    import_tensorflow()

from absl import flags

from auto_deeplab.runs.tf1_checkpoint import import_checkpoint
from official.command_line import run_app
from official.paths import define_path
from official.records import read_description


def main() -> None:
    """Reads the flags and imports."""
    given = flags.FLAGS
    description = read_description(given.data_dir) if given.data_dir else None
    print(import_checkpoint(given.checkpoint, given.output_dir, description))


if __name__ == "__main__":
    define_path(
        "checkpoint",
        None,
        "TF1 checkpoint, such as train/model.ckpt-1500000",
        plain=True,
        required=True,
    )
    define_path("output_dir", None, "the model_dir to make", plain=True, required=True)
    define_path(
        "data_dir", None, "data that the network was trained on: names and colours of its classes"
    )
    run_app(main)
