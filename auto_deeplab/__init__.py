"""Auto-DeepLab: the search for segmentation networks, and the networks that it finds."""

import importlib.util
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auto_deeplab.network.network import Network
    from auto_deeplab.space.genotype import Genotype

if importlib.util.find_spec("official.training_loop") is None:
    raise ImportError(
        "`official` is another package here, most likely that of tf-models-official: the two "
        "cannot share an environment, install auto-deeplab-tf2 in one of its own"
    )


def build(
    genotype: "Genotype | str | os.PathLike[str]", num_classes: int, **options: Any
) -> "Network":
    """An untrained network as a Keras model: built, so that it has its variables and a summary.

    Args:
        genotype: a Genotype, the name of a preset (published, deeplabv3, conv_deconv,
            stacked_hourglass), or the path of a genotype.json, such as a search writes.
        num_classes: channels of the logits.
        options: any further arguments of auto_deeplab.network.network.Network, such as
            filter_multiplier=20, the paper's F, and batch_norm_decay=0.9997, which is right for
            long trainings alone: take 0.99 for some thousand steps.

    Returns:
        A model as `load` returns it; compile and fit train it.

    Raises:
        ValueError: the genotype is neither preset nor file of a genotype, or an option's value is
            impossible; one line.
        official.errors.RunError: Keras has been imported with another backend than TensorFlow.
    """
    from auto_deeplab.space import genotype as genotypes
    from official.quiet import set_environment

    # Here, so that importing the package stays free of TensorFlow.
    set_environment()
    from auto_deeplab.network.network import Network

    if not isinstance(genotype, genotypes.Genotype):
        genotype = genotypes.load(genotype)
    network = Network(genotype, num_classes=num_classes, **options)
    network.build((None, None, None, 3))
    return network


def load(
    model_dir: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None = None
) -> "Network":
    """A trained network as a Keras model.

    Args:
        model_dir: the --model_dir of a training, or the --output_dir of auto_deeplab.import_tf1.
        checkpoint: a path up to the step, a directory of checkpoints, or "best", the one of the
            best validation. Default: the run's newest.

    Returns:
        A model that takes images [B, H, W, 3], RGB, uint8 or floats with values 0..255, of any
        size, and answers logits, float32 [B, H, W, classes]: by model(images), or
        model.predict(images). Its attributes class_names and palette say what the classes are
        called and (red, green, blue) in 0..255 of each.

        It takes images as they are, and knows things as large as they were in its training. Where
        its data were converted with --resize_factor or --max_side, model.sizes says so, and
        model.sizes.answer(model, images) gives logits of the images' own size that were made at
        the data's scale, as --mode=predict does.

    Raises:
        official.errors.UsageError: model_dir holds no training.
        official.errors.RunError: one of its files is missing or damaged, or Keras has been imported
            with another backend than TensorFlow.
    """
    from official.quiet import set_environment

    set_environment()
    from auto_deeplab.runs.saved_network import load_network

    path = None if checkpoint is None else os.fspath(checkpoint)
    return load_network(os.fspath(model_dir), path)[0]
