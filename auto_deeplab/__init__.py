"""Auto-DeepLab: the search for segmentation networks, and the networks that it finds."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auto_deeplab.network.network import Network


def load(
    model_dir: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None = None
) -> "Network":
    """A trained network as a Keras model.

    Args:
      model_dir: the --model_dir of a training, or the --output_dir of auto_deeplab.import_tf1.
      checkpoint: a path up to the step, or a directory of checkpoints. Default: the run's newest.

    Returns:
      A model that takes images [B, H, W, 3], RGB, uint8 or floats with values 0..255, of any size,
      and answers logits, float32 [B, H, W, classes]: by model(images), or model.predict(images).

      It takes images as they are, and knows things as large as they were in its training. Where its
      data were converted with --resize_factor or --max_side, model.sizes says so, and
      model.sizes.answer(model, images) gives logits of the images' own size that were made at the
      data's scale, as --mode=predict does.

    Raises:
      official.errors.UsageError: model_dir holds no training.
      official.errors.RunError: one of its files is missing or damaged, or Keras has been imported
        with another backend than TensorFlow.
    """
    # Here, so that importing the package stays free of TensorFlow.
    from official.quiet import set_environment

    set_environment()
    from auto_deeplab.runs.saved_network import trained_network

    path = None if checkpoint is None else os.fspath(checkpoint)
    return trained_network(os.fspath(model_dir), path)[0]
