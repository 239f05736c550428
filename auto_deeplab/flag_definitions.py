"""The flags of train.py: what they default to in each mode, and which of them make up a run.

Only train.py reads their values.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from absl import flags

from auto_deeplab import cost_table, genotype, search_space, submission, supernet
from auto_deeplab.run_record import NETWORK
from official import distribution
from official.paths import define_path

NEEDED: dict[str, tuple[str, ...]] = {
    "search": ("data_dir", "model_dir"),
    "decode": ("model_dir",),
    "train": ("data_dir", "model_dir"),
    "eval": ("data_dir", "model_dir"),
    "predict": ("model_dir", "output_dir"),
    "export": ("model_dir",),
    "profile": (),
}
"""The flags that each mode cannot do without."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "search": {
        "crop_size": "321",
        "batch_size": 2,
        "learning_rate": 0.025,
        "weight_decay": 3e-4,
        "filter_multiplier": 8,
    },
    "train": {
        "crop_size": "769",
        "batch_size": 16,
        "learning_rate": 0.05,
        "weight_decay": 4e-5,
        "filter_multiplier": 20,
    },
    "profile": {"crop_size": "1025,2049", "filter_multiplier": 20, "num_classes": 19},
}
"""What the mode decides when the flag is not given; the sources are in docs/paper.md."""

AUGMENTATION = ("crop_size", "random_scale", "random_crop", "random_flip")
SEARCH_IDENTITY = (
    *("seed", "train_split", "batch_size", *AUGMENTATION, "epochs", "alpha_start_epoch"),
    *("learning_rate", "min_learning_rate", "weight_decay"),
    *("arch_learning_rate", "arch_weight_decay"),
    *("operations", "num_layers", "num_blocks", "filter_multiplier", "stem_filters"),
    *("class_weights", "alpha_sharing", "second_order", "cost_weight", "cost_budget"),
)
TRAIN_IDENTITY = (
    *("seed", "train_split", "batch_size", *AUGMENTATION, "train_steps"),
    *("learning_rate", "weight_decay", "init_checkpoint", *NETWORK),
    *("class_weights", "top_k_pixels", "hard_mining_steps", "ema_decay"),
    "last_layer_learning_rate_multiplier",
)


class _Parser(flags.ArgumentParser):
    """Reads a flag's text with a function; the message of its ValueError is shown to the user."""

    def __init__(self, read: Callable[[str], Any], meaning: str) -> None:
        self._read, self.syntactic_help = read, meaning

    def parse(self, argument: str) -> Any:
        return self._read(argument)


def _numbers(kind: type, counts: range, meaning: str, text: str) -> list[Any]:
    """Reads comma-separated positive numbers, as many as one of `counts`."""
    try:
        values = [kind(number) for number in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"give {meaning}")
    return values


def _class_weights(text: str) -> list[float]:
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        values = []
    if not all(0 <= value < float("inf") for value in values) or not any(values):
        raise ValueError("give finite numbers from 0 on, one per class, not all 0")
    return values


def _sides(text: str) -> list[int]:
    values = _numbers(int, range(1, 3), "one positive number, or height,width", text)
    return [values[0], values[-1]]


def _operations(text: str) -> list[str]:
    return list(search_space.validate_operations(text.split(",")))


def _list(
    name: str, default: str | None, text: str, read: Callable[[str], Any], meaning: str
) -> None:
    flags.DEFINE(
        _Parser(read, meaning), name, default, text, serializer=flags.CsvListSerializer(",")
    )


_count = partial(flags.DEFINE_integer, lower_bound=1)
_share = partial(flags.DEFINE_float, lower_bound=0.0, upper_bound=1.0)
_strength = partial(flags.DEFINE_float, lower_bound=0.0)
_plain_path = partial(define_path, plain=True)

flags.DEFINE_enum("mode", None, list(NEEDED), "What to do.")
define_path("data_dir", None, "The --output_dir of tfrecords_tools.convert.")
_plain_path("model_dir", None, "Directory of the run; search and train use separate ones.")
flags.DEFINE_integer("seed", 0, "Of everything random.", lower_bound=0, upper_bound=2**31 - 1)
flags.DEFINE_integer(
    "num_classes",
    None,
    "profile, and data without description (shards of DeepLab's scripts); else checked alone.",
)
flags.DEFINE_integer(
    "ignore_label", None, "The label of void pixels, as --num_classes. Default: the data's, or 255."
)
flags.DEFINE_string("train_split", "train", "Split to train on; search halves it.")
flags.DEFINE_string("eval_split", "val", "Split to evaluate on.")
_count("eval_every", None, "Steps between reports. Default: an epoch (search), 1/20 (train).")
_count("save_every", None, "Steps between checkpoints. Default: as --eval_every.")
_count("max_eval_images", None, "Evaluate on so many evenly spaced images. Default: all.")
_plain_path("checkpoint", None, "Path up to the step, or directory. Default: the newest.")
flags.DEFINE_enum("distribution_strategy", "one_device", distribution.STRATEGIES, "Where to run.")
flags.DEFINE_enum("precision", "float32", distribution.PRECISIONS, "What layers compute in.")
flags.DEFINE_bool(
    "sync_batch_norm",
    True,
    "search, train: BN goes by the statistics of the global batch, not of each replica's part.",
)
flags.DEFINE_bool(
    "jit_compile",
    False,
    "search, train: compile the step with XLA; several replicas need --sync_batch_norm=false.",
)
_count("steps_per_loop", 1, "search, train: steps in one call of TensorFlow.")
flags.DEFINE_bool("deterministic", False, "Equal runs give equal bits; slower, one thread.")

# search and train
_list("crop_size", None, "Training crop. Default: 321, 769.", _sides, "side, or height,width")
_count("batch_size", None, "Global batch size. Default: 2, 16.")
flags.DEFINE_bool("random_scale", True, "Augmentation: scale by 0.5, 0.75, ..., 2.")
flags.DEFINE_bool("random_crop", True, "Augmentation: crop anywhere; else the middle.")
flags.DEFINE_bool("random_flip", True, "Augmentation: mirror left and right.")
flags.DEFINE_bool(
    "cache_data", False, "Decode the training images once and keep them in memory: 9 bytes a pixel."
)
_strength("learning_rate", None, "Initial rate. Default: 0.025 (cosine), 0.05 (polynomial).")
_strength("weight_decay", None, "Coupled L2. Default: 3e-4 on all weights, 4e-5 on kernels.")
_count("filter_multiplier", None, "F. Default: 8, 20. The paper's S, M, L have 20, 32, 48.")
_list(
    "stem_filters",
    "64,64,128",
    "Channels of the stem's three convolutions.",
    partial(_numbers, int, range(3, 4), "three positive numbers"),
    "three numbers",
)

_list(
    "class_weights",
    None,
    "Factors of the classes' losses, in the data's order. Default: all 1.",
    _class_weights,
    "one number per class",
)

# search
_count("epochs", 40, "search: passes over trainA.")
flags.DEFINE_integer(
    "alpha_start_epoch", 20, "search: first epoch that moves alpha and beta.", lower_bound=0
)
_strength("min_learning_rate", 0.001, "search: where the cosine ends.")
_strength("arch_learning_rate", 0.003, "search: Adam's rate for alpha and beta.")
_strength("arch_weight_decay", 0.001, "search: coupled L2 on alpha and beta.")
_list(
    "operations",
    ",".join(search_space.OPERATIONS),
    "search: the cell's operations.",
    _operations,
    f"some of {', '.join(search_space.KNOWN_OPERATIONS)}",
)
_count("num_layers", 12, "search: L.")
_count("num_blocks", 5, "search: B.")
flags.DEFINE_enum(
    "recompute",
    "cell",
    list(supernet.RECOMPUTE),
    "search: what the backward pass computes again instead of keeping: docs/performance.md.",
)
flags.DEFINE_enum(
    "alpha_sharing",
    "global",
    list(search_space.ALPHA_SHARING),
    "search: cells of which nodes share one alpha: all, those of a level, those of a layer.",
)
flags.DEFINE_bool(
    "second_order",
    False,
    "search: alpha's and beta's gradient through a step of the weights; four times the cost.",
)
define_path(
    "cost_table", None, "profile: where to write the costs of all pieces; search: that file."
)
flags.DEFINE_enum(
    "cost_metric", "multiply_adds", list(cost_table.UNITS), "profile: what --cost_table holds."
)
flags.DEFINE_float("cost_budget", None, "search: in the table's unit (billions, or ms).")
_strength("cost_weight", 0.0, "search: weight of relu(expected cost / budget - 1). 0: off.")

# train
define_path(
    "genotype",
    None,
    f"train, profile: a genotype.json, or one of {', '.join(genotype.PRESET_PATHS)}.",
)
_count("train_steps", 1_500_000, "train: number of steps.")
_plain_path(
    "init_checkpoint",
    None,
    "train: model_dir or checkpoint to take the first weights from; the number of classes may "
    "differ.",
)
_share("drop_path_keep_prob", 1.0, "train: scheduled drop path's final keep probability.")
_share("batch_norm_decay", 0.9997, "train: BN's moving average; 0.9 to 0.99 for short runs.")
flags.DEFINE_bool("fine_tune_batch_norm", True, "train: false freezes BN's statistics.")
_count("head_filters", 256, "train, profile: channels of ASPP and decoder.")
_share("top_k_pixels", 1.0, "train: share of each image's pixels, the hardest, that count.")
flags.DEFINE_integer(
    "hard_mining_steps", 0, "train: steps over which 1 falls to --top_k_pixels.", lower_bound=0
)
_share(
    "ema_decay",
    0.0,
    "train: decay of averaged weights, which are evaluated then; 0: off. A second copy in memory.",
)
_strength(
    "last_layer_learning_rate_multiplier", 1.0, "train: factor of the rate of decoder/logits."
)

# eval, predict, export
_list(
    "eval_scales",
    "1.0",
    "eval, predict: scales whose probabilities are averaged.",
    partial(_numbers, float, range(1, 20), "one or more positive factors"),
    "factors",
)
flags.DEFINE_bool("eval_flip", False, "eval, predict: average over the mirror image too.")
define_path("input", None, "predict: an image, a folder, or a glob; or give --data_dir.")
define_path("output_dir", None, "predict: where the pictures go.")
flags.DEFINE_enum(
    "submission", None, list(submission.FORMS), "predict: write what this benchmark's server takes."
)
_strength(
    "predict_scale",
    None,
    "predict, export: factor of the images' sides before the network sees them; 1: as they are. "
    "Default: what the training data's conversion did.",
)
_plain_path("export_dir", None, "export: where. Default: model_dir/export.")
flags.DEFINE_bool("export_probabilities", False, "export: signatures answer probabilities too.")

for _name in (
    *("learning_rate", "arch_learning_rate", "drop_path_keep_prob"),
    *("top_k_pixels", "last_layer_learning_rate_multiplier", "cost_budget", "predict_scale"),
):
    flags.register_validator(
        _name, lambda value: value is None or 0 < value < float("inf"), "must be above 0"
    )
flags.register_validator("ema_decay", lambda value: value < 1, "must be below 1")
