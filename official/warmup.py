"""Requests that TensorFlow Serving makes to a model by itself before it is there for others.

The first request after a start waits for TensorFlow's preparations, which take seconds; with this
file in the SavedModel they are over before a server says that the model is available. Its format
is Serving's: a TFRecord file of PredictionLog, at most 1000, in assets.extra.
"""

import importlib.util
from pathlib import Path

import numpy as np
import tensorflow as tf

FILE = Path("assets.extra", "tf_serving_warmup_requests")


def is_possible() -> bool:
    """Whether tensorflow-serving-api, which has the format, is installed."""
    return importlib.util.find_spec("tensorflow_serving") is not None


def write_warmup(directory: Path, image: np.ndarray) -> Path:
    """Writes a request for each signature of official.export into a SavedModel.

    Args:
        directory: of the SavedModel.
        image: uint8 [1, H, W, 3]; requests of that size are fast from the first on, and most of
            what others wait for is done too.

    Returns:
        the file.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    encoded = tf.io.encode_png(image[0])[tf.newaxis]
    path = directory / FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, name, value in (
            ("serving_default", "images", tf.constant(image)),
            ("serve_bytes", "image_bytes", encoded),
            ("serve_png", "image_bytes", encoded),
        ):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "any"  # Serving runs them on the model that holds them
            request.model_spec.signature_name = signature
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())
    return path
