"""Other formats than the SavedModel, and the engines that run them.

    onnx:     model.onnx, run by ONNX Runtime
    litert:   model.tflite, run by LiteRT (TensorFlow Lite's successor)
    openvino: model.xml and model.bin, run by OpenVINO

All have one input, `images` uint8 [N, H, W, 3], RGB, and the outputs `labels` uint8 [N, H, W] and
`logits` float32 [N, H, W, C], on request also `probabilities`. labels.txt and palette.txt lie
beside the model, as in a SavedModel. What converts and what runs them are optional packages, which
are imported where they are used: `pip install auto-deeplab-tf2[export]`.
"""

import contextlib
import importlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from official.errors import RunError, UsageError
from official.evaluation import compute_logits

FILES = {"onnx": "model.onnx", "litert": "model.tflite", "openvino": "model.xml"}
PACKAGES = {
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
    "openvino": ("openvino",),
}
PRECISIONS = ("float32", "float16", "int8")
OPSET = 18

Size = tuple[int, int] | None
"""Height and width of the images; None: any."""

Answer = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""uint8 images [N, H, W, 3] -> labels, logits and, if the model has them, probabilities."""


def check(form: str, precision: str, size: Size) -> None:
    """Whether a format can be written here, with what is installed.

    Raises:
        UsageError: it cannot.
    """
    for package in PACKAGES[form]:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UsageError(
                f"--export_format={form} needs {package}: pip install 'auto-deeplab-tf2[export]'"
            ) from None
    if form == "litert" and size is None:
        raise UsageError(
            "--export_format=litert has images of one size alone: give it, --export_size=H,W"
        )
    if form == "openvino" and precision == "int8":
        raise UsageError(
            "--export_precision=int8 is not made for openvino: take float16, or let its own "
            "compressor, NNCF, read the float32 model"
        )


class Plain(tf.Module):
    """A network as a graph without TensorFlow's own errors and assets, which all formats know.

    Args:
        model: float32 images [N, H, W, 3] in 0..255 -> float32 logits [N, H, W, C].
        num_classes: C.
        size: of the images.
        probabilities: whether it answers them too.
    """

    def __init__(
        self, model: keras.Model, num_classes: int, size: Size, probabilities: bool = False
    ) -> None:
        super().__init__()
        self.model_variables = [variable.value for variable in model.variables]

        def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = compute_logits(model, images, num_classes)
            labels = tf.cast(tf.argmax(logits, -1, output_type=tf.int32), tf.uint8)
            more = {"probabilities": tf.nn.softmax(logits)} if probabilities else {}
            return {"labels": labels, "logits": logits, **more}

        self.size, self._answer = size, answer

    def make_function(self, size: Size) -> Any:
        """The traced function for images of that size, one at a time, or of any."""
        shape = [None, None, None, 3] if size is None else [1, *size, 3]
        images = tf.TensorSpec(shape, tf.uint8, name="images")
        return tf.function(self._answer, [images], autograph=False)


def write(
    form: str, plain: Plain, directory: Path, precision: str, samples: Sequence[np.ndarray]
) -> Path:
    """Writes a model, and returns its file.

    Args:
        form: a key of FILES.
        plain: what is written.
        directory: where; it exists.
        precision: one of PRECISIONS. int8 keeps uint8 in and float32 out.
        samples: images uint8 [1, H, W, 3], on which int8's ranges are measured.

    Raises:
        RunError: the converter fails.
    """
    path = directory / FILES[form]
    writer = {"onnx": _write_onnx, "litert": _write_litert, "openvino": _write_openvino}[form]
    try:
        with _silent():
            writer(plain, path, precision, samples)
    except (RunError, MemoryError):
        raise
    except Exception as error:  # of whatever kind a converter raises
        line = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise RunError(f"--export_format={form}: the converter fails: {line[0][:300]}") from error
    return path


def load(form: str, path: Path) -> Answer:
    """A model in its engine, on the CPU, with as many threads as the engine likes."""
    return {"onnx": _load_onnx, "litert": _load_litert, "openvino": _load_openvino}[form](path)


def _write_onnx(plain: Plain, path: Path, precision: str, samples: Sequence[np.ndarray]) -> None:
    import onnx
    import tf2onnx

    # Of images of one size it would write resizing as a factor, whose product is cut off to a size
    # that can be one too small. Of any size it writes the size.
    function = plain.make_function(None)
    model, _ = tf2onnx.convert.from_function(
        function, input_signature=function.input_signature, opset=OPSET
    )
    _write_out_pads(model)
    if plain.size:
        sides = model.graph.input[0].type.tensor_type.shape.dim
        for side, value in zip(sides, (1, *plain.size, 3), strict=True):
            side.ClearField("dim_param")
            side.dim_value = value
    if precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # Labels are those of the largest logit, of which float16 makes many equal.
        model = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=["Resize", "ArgMax", "Cast"]
        )
    onnx.save(model, path)
    if precision == "int8":
        _quantize_onnx(path, samples)


def _quantize_onnx(path: Path, samples: Sequence[np.ndarray]) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({"images": sample} for sample in self._left), None)

    whole = path.with_suffix(".float.onnx")
    path.rename(whole)
    quantization.quantize_static(
        whole,
        path,
        Reader(),
        op_types_to_quantize=["Conv"],
        per_channel=True,
        # Weights of 7 bits: processors with AVX2 or AVX-512 and without VNNI add two products in
        # 16 bits, which with 8 overflow. A file has to do wherever it goes.
        reduce_range=True,
        weight_type=quantization.QuantType.QInt8,
        activation_type=quantization.QuantType.QUInt8,
    )
    whole.unlink()


def _write_out_pads(model: Any) -> None:
    """Pads in numbers for convolutions of stride 1, as ONNX Runtime has no SAME for dilated ones.

    At stride 1 they are the same for images of all sizes.
    """
    from onnx import helper, numpy_helper

    kernels = {one.name: numpy_helper.to_array(one).shape for one in model.graph.initializer}
    for node in model.graph.node:
        attributes = {one.name: one for one in node.attribute}
        if node.op_type != "Conv" or attributes.get("auto_pad") is None:
            continue
        strides = list(attributes["strides"].ints) if "strides" in attributes else [1, 1]
        if attributes["auto_pad"].s != b"SAME_UPPER" or set(strides) != {1}:
            continue
        sides = kernels[node.input[1]][2:]
        rates = list(attributes["dilations"].ints) if "dilations" in attributes else [1, 1]
        total = [rate * (side - 1) for rate, side in zip(rates, sides, strict=True)]
        before = [pad // 2 for pad in total]
        after = [pad - first for pad, first in zip(total, before, strict=True)]
        node.attribute.remove(attributes["auto_pad"])
        if "pads" in attributes:
            node.attribute.remove(attributes["pads"])
        node.attribute.append(helper.make_attribute("pads", [*before, *after]))


def _write_litert(plain: Plain, path: Path, precision: str, samples: Sequence[np.ndarray]) -> None:
    concrete = plain.make_function(plain.size).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], plain)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = lambda: ({"images": sample} for sample in samples)
    path.write_bytes(converter.convert())


def _write_openvino(
    plain: Plain, path: Path, precision: str, samples: Sequence[np.ndarray]
) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as directory:
        tf.saved_model.save(plain, directory, signatures=plain.make_function(plain.size))
        model = openvino.convert_model(directory)
    openvino.save_model(model, path, compress_to_fp16=precision == "float16")


def _load_onnx(path: Path) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def _load_litert(path: Path) -> Answer:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.fspath(path), num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner()
    return lambda images: dict(runner(images=images))


def _load_openvino(path: Path) -> Answer:
    import openvino

    # By itself it computes in bfloat16 where the processor has that.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: {
        output.get_any_name(): np.array(value)
        for output, value in compiled({"images": images}).items()
    }


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Converters write pages about themselves."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
