"""The flags that say which data a command looks at."""

from absl import flags

from official.errors import UsageError
from official.paths import define_path
from official.records import Description, read_description


def define() -> None:
    """Defines --data_dir, --num_classes and --ignore_label."""
    define_path(
        "data_dir", None, "the --output_dir that tfrecords_tools.convert was given", required=True
    )
    flags.DEFINE_integer(
        "num_classes", None, "of data without description (shards of DeepLab's scripts)"
    )
    flags.DEFINE_integer(
        "ignore_label", None, "the label of void pixels, as --num_classes. Default: 255"
    )


def read(values: flags.FlagValues) -> Description:
    """Reads the description of --data_dir.

    Raises:
        UsageError: it is not what the other flags say, or they are missing.
        RunError: there is no dataset.
    """
    description = read_description(values.data_dir, values.num_classes, values.ignore_label)
    for name in ("num_classes", "ignore_label"):
        given, found = getattr(values, name), getattr(description, name)
        if given not in (None, found):
            raise UsageError(
                f"--{name}={given}, but the data in {values.data_dir} have {found}: leave the flag "
                "away"
            )
    return description
