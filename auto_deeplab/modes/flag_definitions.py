"""The flags of train.py: which modes use them, what they default to, which make up a run.

Only train.py reads their values; mode_flags.py checks and explains them. TensorFlow is not imported
here, so that `--help` is quick.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from auto_deeplab.runs.run_record import LARGEST, NETWORK
from auto_deeplab.space import genotype, search_space
from official import submission
from official.paths import define_path

_CONFIGS = Path(__file__).parents[1] / "configs"
CONFIGS = (_CONFIGS, _CONFIGS / "recipes")
"""Where flagfiles are found by their names alone, also in an installed package."""

MODES = {
    "search": "searches an architecture: its cell and its path of resolutions",
    "decode": "makes genotype.json and the figures again, from any checkpoint of a search",
    "train": "trains the network of a genotype from its first weights on",
    "eval": "evaluates a trained network on whole images",
    "predict": "segments pictures, or the images of a split",
    "demo": "serves a page on this machine: drop a photograph, see its classes",
    "export": "writes a trained network as SavedModel, ONNX, LiteRT or OpenVINO",
    "profile": "counts a network's parameters and multiply-adds",
    "sample": "writes architectures at random, from the space or a search, or its best",
    "study": "searches, draws at random, trains and compares; each part is a command",
    "compare": "compares trained networks, found ones with random ones",
    "draw": "draws an architecture: its path and its cells",
}

NEEDED: dict[str, tuple[str, ...]] = {
    "search": ("data_dir", "model_dir"),
    "decode": ("model_dir",),
    "train": ("data_dir", "model_dir"),
    "eval": ("data_dir", "model_dir"),
    "predict": ("model_dir", "output_dir"),
    "demo": ("model_dir",),
    "export": ("model_dir",),
    "profile": (),
    "sample": ("output_dir",),
    "study": ("data_dir", "model_dir", "search_flagfile", "train_flagfile"),
    "compare": ("runs",),
    "draw": ("genotype", "output"),
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
        "stem_filters": "64,64,128",
    },
    "predict": {"batch_size": 1},
    "profile": {
        "crop_size": "1025,2049",
        "filter_multiplier": 20,
        "stem_filters": "64,64,128",
        "num_classes": 19,
    },
}
"""What the mode decides when the flag is not given; the sources are in docs/paper.md."""

_LEARNING = ("search", "train")
_DATA = (*_LEARNING, "eval", "predict")
_RUNNING = (*_DATA, "demo", "export", "profile")
_SHAPE = (*_LEARNING, "profile")

USED: dict[str, tuple[str, ...]] = {
    "mode": tuple(MODES),
    "data_dir": (*_DATA, "demo", "export", "sample", "study"),
    "model_dir": tuple(mode for mode in MODES if mode not in ("compare", "draw")),
    "seed": (*_LEARNING, "sample"),
    "num_classes": (*_DATA, "demo", "export", "profile", "sample"),
    "ignore_label": (*_DATA, "demo", "export", "sample"),
    "train_split": _LEARNING,
    "eval_split": (*_DATA, "demo", "export", "sample"),
    "eval_every": _LEARNING,
    "save_every": _LEARNING,
    "keep_checkpoints": _LEARNING,
    "max_eval_images": (*_LEARNING, "eval", "export", "sample"),
    "checkpoint": ("search", "decode", "train", "eval", "predict", "demo", "export", "sample"),
    "distribution_strategy": _RUNNING,
    "precision": _RUNNING,
    "sync_batch_norm": _LEARNING,
    "jit_compile": _LEARNING,
    "steps_per_loop": _LEARNING,
    "max_bad_steps": _LEARNING,
    "deterministic": _RUNNING,
    "crop_size": _SHAPE,
    "batch_size": (*_LEARNING, "predict"),
    "resize_longer_side": _LEARNING,
    "random_scale": _LEARNING,
    "random_crop": _LEARNING,
    "random_flip": _LEARNING,
    "cache_data": _LEARNING,
    "learning_rate": _LEARNING,
    "weight_decay": _LEARNING,
    "gradient_clip_norm": _LEARNING,
    "filter_multiplier": _SHAPE,
    "stem_filters": _SHAPE,
    "class_weights": _LEARNING,
    "epochs": ("search",),
    "alpha_start_epoch": ("search",),
    "min_learning_rate": ("search",),
    "arch_learning_rate": ("search",),
    "arch_weight_decay": ("search",),
    "arch_betas": ("search",),
    "operations": ("search", "profile", "sample"),
    "num_layers": ("search", "profile", "sample"),
    "num_blocks": ("search", "profile", "sample"),
    "recompute": ("search",),
    "alpha_sharing": ("search",),
    "partial_channels": ("search",),
    "second_order": ("search",),
    "stop_at_skip_connects": ("search",),
    "alpha_hessian_batches": ("search",),
    "cost_table": ("search", "profile", "sample"),
    "cost_metric": ("profile",),
    "cost_budget": ("search", "sample"),
    "cost_weight": ("search",),
    "genotype": ("train", "profile", "draw"),
    "train_steps": ("train",),
    "init_checkpoint": ("train",),
    "drop_path_keep_prob": ("train",),
    "batch_norm_decay": ("train",),
    "fine_tune_batch_norm": ("train",),
    "head_filters": ("train", "profile"),
    "top_k_pixels": ("train",),
    "hard_mining_steps": ("train",),
    "ema_decay": ("train",),
    "last_layer_learning_rate_multiplier": ("train",),
    "eval_scales": ("eval", "predict"),
    "eval_flip": ("eval", "predict"),
    "output": ("eval", "compare", "draw"),
    "input": ("predict",),
    "output_dir": ("predict", "sample"),
    "submission": ("predict",),
    "tile": ("predict",),
    "overlap": ("predict",),
    "save_probabilities": ("predict",),
    "predict_scale": ("predict", "demo", "export"),
    "max_pixels": ("predict", "demo", "export"),
    "port": ("demo",),
    "export_dir": ("export",),
    "export_format": ("export",),
    "export_precision": ("export",),
    "export_size": ("export",),
    "export_probabilities": ("export",),
    "min_equal_labels": ("export",),
    "latency": ("profile", "compare"),
    "num_samples": ("sample",),
    "sample_best": ("sample",),
    "candidates": ("sample",),
    "batch_norm_batches": ("sample",),
    "ranking_steps": ("sample", "study"),
    "search_flagfile": ("study",),
    "train_flagfile": ("study",),
    "num_searches": ("study",),
    "num_random": ("study",),
    "presets": ("study",),
    "front": ("study",),
    "print_commands": ("study",),
    "runs": ("compare",),
    "ranking": ("compare",),
}
"""Flag -> the modes that use it. To any other mode it is an error (mode_flags.check)."""

AUGMENTATION = ("crop_size", "resize_longer_side", "random_scale", "random_crop", "random_flip")
SEARCH_IDENTITY = (
    *("seed", "train_split", "batch_size", *AUGMENTATION, "epochs", "alpha_start_epoch"),
    *("learning_rate", "min_learning_rate", "weight_decay", "gradient_clip_norm"),
    *("arch_learning_rate", "arch_weight_decay", "arch_betas"),
    *("operations", "num_layers", "num_blocks", "filter_multiplier", "stem_filters"),
    *(
        "class_weights",
        "alpha_sharing",
        "partial_channels",
        "second_order",
        "stop_at_skip_connects",
        "cost_weight",
        "cost_budget",
    ),
    *("precision", "sync_batch_norm"),
)
TRAIN_IDENTITY = (
    *("seed", "train_split", "batch_size", *AUGMENTATION, "train_steps"),
    *("learning_rate", "weight_decay", "gradient_clip_norm", "init_checkpoint", *NETWORK),
    *("class_weights", "top_k_pixels", "hard_mining_steps", "ema_decay"),
    *("last_layer_learning_rate_multiplier", "precision", "sync_batch_norm"),
)


# What other modules offer, in words: importing them would load TensorFlow. A test compares.
DISTRIBUTION_STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")
PRECISIONS = ("float32", "bfloat16", "float16")
RECOMPUTE = ("cell", "node", "none")
COST_METRICS = ("multiply_adds", "latency")
LARGEST_IMAGE = 2**27


SMALLEST, GREATEST = 1e-30, 1e30
"""Of factors: float32 has nothing below 1e-38 and above 3e38, and products need room."""


class _Parser(flags.ArgumentParser):
    """Reads a flag's text with a function; the message of its ValueError is shown to the user."""

    def __init__(self, read: Callable[[str], Any], meaning: str, placeholder: str) -> None:
        self._read, self.syntactic_help, self.placeholder = read, meaning, placeholder

    def parse(self, argument: str) -> Any:
        return self._read(argument)


def _numbers(kind: type, counts: range, meaning: str, text: str) -> list[Any]:
    """Reads comma-separated positive numbers, as many as one of `counts`."""
    try:
        values = [kind(number) for number in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not all(0 < value <= LARGEST for value in values):
        raise ValueError(f"give {meaning}, {LARGEST} at most")
    return values


def _class_weights(text: str) -> list[float]:
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        values = []
    if not all(value == 0 or SMALLEST <= value <= GREATEST for value in values):
        values = []
    if not any(values):
        raise ValueError(
            "give finite numbers from 0 on, one per class, not all 0; "
            f"{SMALLEST:g} is the smallest, {GREATEST:g} the largest"
        )
    return values


def _betas(text: str) -> list[float]:
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 2 or not all(0 <= value < 1 for value in values):
        raise ValueError("give two numbers from 0 to below 1")
    return values


def _sides(text: str) -> list[int]:
    values = _numbers(int, range(1, 3), "one positive number, or height,width", text)
    if values[0] * values[-1] > LARGEST_IMAGE:
        raise ValueError(f"it has more than {LARGEST_IMAGE} pixels: give a smaller one")
    return [values[0], values[-1]]


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names:
        raise ValueError("give names of directories, or patterns")
    return names


def _formats(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - {"saved_model", "onnx", "litert", "openvino"}:
        raise ValueError(f"{unknown.pop()} is none")
    return list(dict.fromkeys(names))


def _operations(text: str) -> list[str]:
    return list(search_space.validate_operations(text.split(",")))


def _list(
    name: str,
    default: str | None,
    text: str,
    read: Callable[[str], Any],
    meaning: str,
    placeholder: str = "X,X,...",
) -> None:
    parser = _Parser(read, meaning, placeholder)
    flags.DEFINE(parser, name, default, text, serializer=flags.CsvListSerializer(","))


class _FiniteParser(flags.FloatParser):
    """Reads a number that float32 has; absl takes nan and inf for numbers too."""

    def convert(self, argument: Any) -> float:
        value = super().convert(argument)
        if not abs(value) <= GREATEST:
            raise ValueError(f"it must be a finite number, {GREATEST:g} at most")
        return value


def _number(name: str, default: float | None, text: str, **bounds: float) -> None:
    flags.DEFINE(
        *(_FiniteParser(**bounds), name, default, text), serializer=flags.ArgumentSerializer()
    )


_count = partial(flags.DEFINE_integer, lower_bound=1, upper_bound=2**31 - 1)
_size = partial(flags.DEFINE_integer, lower_bound=1, upper_bound=LARGEST)
_depth = partial(flags.DEFINE_integer, lower_bound=1, upper_bound=genotype.MOST)
_share = partial(_number, lower_bound=0.0, upper_bound=1.0)
_strength = partial(_number, lower_bound=0.0)
_plain_path = partial(define_path, plain=True)

flags.DEFINE_enum("mode", None, list(MODES), "What the command does.")
define_path(
    "data_dir",
    None,
    "The directory of TFRecords that tfrecords_tools.convert wrote: its --output_dir.",
)
_plain_path(
    "model_dir",
    None,
    "The directory of the run. A search and a training each need one of their own; the other modes "
    "read it.",
)
flags.DEFINE_integer(
    "seed",
    0,
    "Where the random numbers begin: of first weights, the halves of a search's data, the order of "
    "images, augmentation, dropout and drop path. Runs with the same seed and flags draw the same "
    "ones.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
flags.DEFINE_integer(
    "num_classes",
    None,
    "C, the number of classes: labels are 0 to C - 1, or void. Give it for shards that DeepLab's "
    "own scripts wrote, which do not say it, and for a network that profile counts without "
    "--model_dir. All other data and runs know it: leave it away there, as another number is an "
    "error.",
    lower_bound=1,
    upper_bound=256,
)
flags.DEFINE_integer(
    "ignore_label",
    None,
    "The label of void pixels, which do not count. It can be left away, as --num_classes; shards "
    "of DeepLab's own scripts are read with 255 then.",
    lower_bound=0,
    upper_bound=255,
)
flags.DEFINE_string(
    "train_split", "train", "The split to train on. A search halves it: trainA and trainB."
)
flags.DEFINE_string(
    "eval_split", "val", "The split to evaluate on, to predict, or to take examples from."
)
_count(
    "eval_every",
    None,
    "The number of steps between two reports with an evaluation. Without it a search reports "
    "after each epoch, a training 20 times.",
)
_count(
    "save_every",
    None,
    "The number of steps between two checkpoints. Without it one is saved with each report.",
)
flags.DEFINE_integer(
    "keep_checkpoints",
    3,
    "The number of checkpoints that are kept: the newest ones, beside the one of the best "
    "validation. Whether the newest is good, only the loss of the next step tells: so at least 2.",
    lower_bound=2,
    upper_bound=2**31 - 1,
)
_count(
    "max_eval_images",
    None,
    "Evaluates on so many images, spread evenly over the split. Without it on all.",
)
_plain_path(
    "checkpoint",
    None,
    "The checkpoint to read: its path up to the step, such as RUN/checkpoints/ckpt-100, a "
    "directory, whose newest is taken, or best, the one of the best validation. Without it the "
    "newest of --model_dir is taken. A search or training is led back to it, once: what came after "
    "is set aside, and rates may be others from there on.",
)
flags.DEFINE_enum(
    "distribution_strategy",
    "one_device",
    DISTRIBUTION_STRATEGIES,
    "Where to compute: on the first GPU or the CPU, on all GPUs of this machine, on the machines "
    "of the environment variable TF_CONFIG, or on a TPU.",
)
flags.DEFINE_enum(
    "precision",
    "float32",
    PRECISIONS,
    "The number format that layers compute in. Variables and losses stay float32.",
)
flags.DEFINE_bool(
    "sync_batch_norm",
    True,
    "Normalises batches by the statistics of the global batch, not of each replica's part.",
)
flags.DEFINE_bool(
    "jit_compile",
    False,
    "Compiles the step with XLA, which is meant for GPUs. Several replicas need "
    "--sync_batch_norm=false with it.",
)
_count(
    "steps_per_loop",
    1,
    "The number of steps that are made in one call of TensorFlow. More than 1 helps where steps "
    "are short.",
)
flags.DEFINE_integer(
    "max_bad_steps",
    0,
    "The number of steps in a row that may have a loss, or lead to values, that are not finite. "
    "They change nothing; one more ends the run.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
flags.DEFINE_bool(
    "deterministic",
    False,
    "Makes equal runs give equal bits. It is slower and uses one thread.",
)

# search and train
_list(
    "crop_size",
    None,
    "The sides of a training crop in pixels; for profile, of the image.",
    _sides,
    "side, or height,width",
    "SIDE or HEIGHT,WIDTH",
)
_count(
    "batch_size",
    None,
    "The number of images in a step, on all devices together; for predict, of images or tiles of "
    "one size that go through the network at once.",
)
_size(
    "resize_longer_side",
    None,
    "Resizes each training image so that its longer side has so many pixels, small ones too, "
    "before it is scaled and cropped. Evaluation takes images as they are. Without it none is "
    "resized.",
)
flags.DEFINE_bool(
    "random_scale", True, "Scales each training image by one of 0.5, 0.75, ..., 2, drawn anew."
)
flags.DEFINE_bool(
    "random_crop", True, "Crops anywhere in the training image. Without it the middle is taken."
)
flags.DEFINE_bool("random_flip", True, "Mirrors half of the training crops left and right.")
flags.DEFINE_bool(
    "cache_data",
    False,
    "Decodes the training images once and keeps them in memory, which takes some 9 bytes a pixel.",
)
_strength(
    "learning_rate",
    None,
    "The first learning rate of the weights. It falls along a cosine in a search and along a "
    "polynomial of power 0.9 in a training.",
)
_strength(
    "weight_decay",
    None,
    "The factor of the coupled L2 penalty: in a search on all weights, in a training on "
    "convolution kernels.",
)
_number(
    "gradient_clip_norm",
    None,
    "The largest norm that the gradient of the loss by all weights together may have; a longer one "
    "is shortened to it. Without it nothing is clipped.",
)
_size(
    "filter_multiplier",
    None,
    "F: a cell at stride 4 has blocks of F channels, and each halving of the sides doubles them. "
    "The paper's networks S, M and L have 20, 32 and 48.",
)
_list(
    "stem_filters",
    None,
    "The channels of the stem's convolutions. A search takes two, the paper's stem (without the "
    "flag B F / 2 and B F, for --num_blocks=B and --filter_multiplier=F), or three; a search that "
    "goes on has those that it began with. The network that is trained has three.",
    partial(_numbers, int, range(2, 4), "two or three positive numbers"),
    "two or three numbers",
    "N,N[,N]",
)

_list(
    "class_weights",
    None,
    "The factors of the classes' losses, in the data's order; tfrecords_tools.class_weights "
    "computes some. Without it all are 1.",
    _class_weights,
    "one number per class",
)

# search
_count("epochs", 40, "The number of passes over trainA, half of the training images.")
flags.DEFINE_integer(
    "alpha_start_epoch",
    20,
    "The first epoch, counted from 0, that moves alpha and beta; before it weights learn alone.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
_strength("min_learning_rate", 0.001, "The rate of the weights at which the cosine ends.")
_strength("arch_learning_rate", 0.003, "The rate of Adam for alpha and beta.")
_strength("arch_weight_decay", 0.001, "The factor of the coupled L2 penalty on alpha and beta.")
_list(
    "arch_betas",
    "0.9,0.999",
    "The decays of Adam's running means, for alpha and beta: of the gradient, of its square.",
    _betas,
    "two numbers from 0 to below 1",
    "B,B",
)
_list(
    "operations",
    ",".join(search_space.OPERATIONS),
    "The operations among which the cell's edges choose; for profile, those that --cost_table "
    "measures.",
    _operations,
    f"some of {', '.join(search_space.KNOWN_OPERATIONS)}",
    "NAME,NAME,...",
)
_depth("num_layers", 12, "L, the number of layers of the super-net, each of which has a cell.")
_depth("num_blocks", 5, "B, the number of blocks in a cell.")
flags.DEFINE_enum(
    "recompute",
    "cell",
    RECOMPUTE,
    "What the backward pass computes again instead of keeping it in memory; see "
    "docs/performance.md.",
)
flags.DEFINE_enum(
    "alpha_sharing",
    "global",
    list(search_space.ALPHA_SHARING),
    "Which cells share one alpha: all, those of a level, or those of a layer.",
)
_count(
    "partial_channels",
    1,
    "K of PC-DARTS: in the cells of the search the operations see 1/K of the channels, and the "
    "edges have weights beside alpha. K must divide --filter_multiplier; 1 is the paper. Described "
    "in docs/beyond_the_paper.md.",
)
flags.DEFINE_bool(
    "second_order",
    False,
    "Takes the gradient of alpha and beta through a step of the weights, at four times the cost.",
)
flags.DEFINE_integer(
    "stop_at_skip_connects",
    0,
    "Ends the search with the first report in which a cell has so many skip-connections, as DARTS+ "
    "does; 0 makes all --epochs. Described in docs/beyond_the_paper.md.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
flags.DEFINE_integer(
    "alpha_hessian_batches",
    0,
    "Of so many batches each report measures the largest eigenvalue of the Hessian of the loss by "
    "alpha (RobustDARTS), which changes nothing; 0 measures none. Described in "
    "docs/beyond_the_paper.md.",
    lower_bound=0,
    upper_bound=1000,
)
define_path(
    "cost_table",
    None,
    "The JSON file of what all pieces of all networks cost: profile measures and writes it, a "
    "search with --cost_weight reads it.",
)
flags.DEFINE_enum(
    "cost_metric",
    "multiply_adds",
    COST_METRICS,
    "What --cost_table holds: billions of multiply-adds, or ms on this device.",
)
_number(
    "cost_budget",
    None,
    "The cost up to which an architecture pays nothing, in the unit of --cost_table: billions of "
    "multiply-adds, or ms.",
)
_strength(
    "cost_weight",
    0.0,
    "The weight of relu(expected cost / budget - 1) in the architecture's loss; 0 switches it off.",
)

# train
define_path(
    "genotype",
    None,
    "The architecture: the genotype.json of a search, or one of "
    f"{', '.join(genotype.PRESET_PATHS)}. A training that goes on has its own copy.",
)
_count("train_steps", 1_500_000, "The number of training steps, at the end of which the rate is 0.")
_plain_path(
    "init_checkpoint",
    None,
    "The model_dir or checkpoint of another training, to take the first weights from. Its classes "
    "may be others.",
)
_share(
    "drop_path_keep_prob",
    1.0,
    "The probability with which the last cell keeps an operation when scheduled drop path ends; 1 "
    "switches it off.",
)
_share(
    "batch_norm_decay",
    0.9997,
    "How much of batch normalisation's moving statistics a step keeps. Short trainings need 0.9 "
    "to 0.99.",
)
flags.DEFINE_bool(
    "fine_tune_batch_norm",
    True,
    "Lets batch normalisation follow the batches' statistics. Without it the statistics stay "
    "as --init_checkpoint has them.",
)
_size("head_filters", 256, "The channels of ASPP and decoder.")
_share(
    "top_k_pixels",
    1.0,
    "The share of each image's pixels, those of the largest losses, that count.",
)
flags.DEFINE_integer(
    "hard_mining_steps",
    0,
    "The number of steps over which the share that counts falls from 1 to --top_k_pixels.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
_share(
    "ema_decay",
    0.0,
    "The decay of moving averages of the weights, which are what is evaluated and exported then; 0 "
    "switches them off. They are a second copy in memory.",
)
_strength(
    "last_layer_learning_rate_multiplier",
    1.0,
    "The factor of the learning rate of the last layer, decoder/logits.",
)

# eval, predict, export
_list(
    "eval_scales",
    "1.0",
    "The factors of an image's sides; the probabilities of all scales are averaged.",
    partial(_numbers, float, range(1, 20), "one or more positive factors"),
    "factors",
)
flags.DEFINE_bool("eval_flip", False, "Averages over the mirror image too.")
define_path(
    "output",
    None,
    "The file to write. Of draw it is the picture, whose name ends in .svg or .png. Of compare it "
    "is a JSON file, of what is printed. Of eval it is "
    "the JSON file for the metrics, and the confusion matrix goes beside it; without it they go "
    "into --model_dir, under names that say which images, scales and checkpoint they are of; see "
    "docs/evaluation.md.",
)
define_path(
    "input",
    None,
    "The pictures: a file, a folder, or a quoted glob. Without it --data_dir is read.",
)
define_path(
    "output_dir",
    None,
    "The directory for predict's label maps and overlays, or, a new one, for sample's "
    "architectures.",
)
flags.DEFINE_enum(
    "submission",
    None,
    list(submission.FORMS),
    "Writes what the test server of this benchmark takes, instead of label maps and overlays.",
)
_list(
    "tile",
    None,
    "Segments pictures in tiles of this size, in pixels as the network sees them, for those that "
    "do not fit into memory whole.",
    _sides,
    "side, or height,width",
    "SIDE or HEIGHT,WIDTH",
)
flags.DEFINE_integer(
    "overlap",
    0,
    "How many pixels neighbouring tiles share at least; each keeps its half.",
    lower_bound=0,
    upper_bound=LARGEST,
)
flags.DEFINE_bool(
    "save_probabilities",
    False,
    "Writes each picture's probabilities too: *_probabilities.npz, 2 bytes a class and pixel "
    "before it is compressed.",
)
_number(
    "predict_scale",
    None,
    "The factor of a picture's sides before the network sees it; 1 leaves it as it is. Without it "
    "pictures are brought to the scale of the training data.",
    lower_bound=0.0,
    upper_bound=LARGEST,
)
_count(
    "max_pixels",
    2**25,
    "The number of pixels above which an image is refused, before it is decoded: a small file can "
    "claim to be larger than memory. The exported network keeps to it too.",
)
flags.DEFINE_integer(
    "port",
    7860,
    "The port of the page, http://127.0.0.1:PORT, which other machines cannot see. 0 takes any "
    "that is free.",
    lower_bound=0,
    upper_bound=65_535,
)
_plain_path(
    "export_dir",
    None,
    "The directory in which 1, 2, ... are made, a SavedModel each, and onnx/1 and so on for other "
    "formats. Without it model_dir/export.",
)
_list(
    "export_format",
    "saved_model",
    "The formats to write: saved_model, onnx, litert, openvino. Each is run in its own engine "
    "before it appears, beside the network, on images of --data_dir or made-up ones.",
    _formats,
    "one or more of saved_model, onnx, litert, openvino",
    "FORMAT,...",
)
flags.DEFINE_enum(
    "export_precision",
    "float32",
    ["float32", "float16", "int8"],
    "What the formats beside the SavedModel hold weights and compute in; int8 measures the ranges "
    "of numbers on images of --data_dir.",
)
_list(
    "export_size",
    None,
    "The size of the images that the formats beside the SavedModel take, one at a time. Without it "
    "they take any, but litert needs one.",
    _sides,
    "one positive number, or height,width",
    "HEIGHT[,WIDTH]",
)
flags.DEFINE_bool(
    "export_probabilities", False, "Makes what is exported answer probabilities beside labels."
)
_number(
    "min_equal_labels",
    None,
    "The share of pixels that must get the network's own label, or nothing is exported: by default "
    "0.999 in float32, 0.99 in float16, 0.9 in int8.",
    lower_bound=0.0,
    upper_bound=1.0,
)

# profile
flags.DEFINE_bool(
    "latency",
    False,
    "Measures how long the exported network takes for an image of --crop_size on this device. "
    "Without --crop_size, and in compare, a run's images have the size that most of its data have.",
)

# sample
flags.DEFINE_integer(
    "num_samples",
    10,
    "The number of architectures that are drawn, no two of them the same. It may be 0 with "
    "--candidates.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "sample_best",
    False,
    "Takes the most probable architectures of the search in --model_dir; the first of them is the "
    "one that it decodes. Without it they are drawn by their probability.",
)

flags.DEFINE_list(
    "candidates",
    [],
    "Architectures beside those that are drawn: genotype files, quoted patterns of such, presets. "
    "With --data_dir all of them are ranked in the super-net of the search in --model_dir.",
)
_count(
    "batch_norm_batches",
    8,
    "The number of batches on which an architecture's BN statistics are estimated in the super-net "
    "before it is evaluated there; the batches are made as the search makes them.",
)
flags.DEFINE_integer(
    "ranking_steps",
    0,
    "So many steps train the super-net's weights for single architectures, drawn uniformly, before "
    "any is ranked in it: the search trained them as a mixture.",
    lower_bound=0,
)

# study
define_path(
    "search_flagfile", None, "The flagfile of the study's searches, which differ in --seed alone."
)
define_path(
    "train_flagfile", None, "The flagfile of the study's trainings, which differ in --genotype."
)
flags.DEFINE_integer("num_searches", 3, "The number of searches.", lower_bound=0)
flags.DEFINE_integer(
    "num_random", 3, "The number of architectures drawn from the space uniformly.", lower_bound=0
)
flags.DEFINE_list("presets", ["published"], "Presets that are trained like what is found.")
flags.DEFINE_integer(
    "front",
    0,
    "So many architectures of the first search's Pareto front are trained too: of mIoU in its "
    "super-net against multiply-adds.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "print_commands",
    False,
    "Prints the parts instead of running them, one a line: stage, name, the parts that it needs, "
    "command, divided by tabs. What is of one stage can run at the same time.",
)

# compare
_list(
    "runs",
    None,
    "The model_dirs of trainings that --mode=eval has evaluated, or quoted patterns such as "
    "'STUDY/*'; what a pattern finds beside trainings is passed over.",
    _names,
    "names of directories, or patterns",
    "RUN,RUN,...",
)
define_path(
    "ranking",
    None,
    "The front.json that says which mIoU architectures have in the super-net. Without it "
    "ranking/front.json beside the runs is read, where there is one.",
)

for _name in (
    *("learning_rate", "arch_learning_rate", "gradient_clip_norm", "drop_path_keep_prob"),
    *("top_k_pixels", "last_layer_learning_rate_multiplier", "cost_budget", "predict_scale"),
):
    flags.register_validator(
        _name,
        lambda value: value is None or value >= SMALLEST,
        f"must be above 0, and {SMALLEST:g} at least: what is less is nothing in float32",
    )
flags.register_validator("ema_decay", lambda value: value < 1, "must be below 1")
