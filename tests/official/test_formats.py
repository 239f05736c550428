"""Exports in other formats, each in its own engine, beside the Keras model."""

import numpy as np
import pytest
import tensorflow as tf

import auto_deeplab
from auto_deeplab.space.genotype import Genotype
from official import formats, parity
from official.errors import RunError, UsageError

CLASSES = 4
NAMES = ["a", "b", "c", "d"]
CELL = (
    ((0, "sep_conv_3x3"), (1, "max_pool_3x3")),
    ((0, "atrous_conv_5x5"), (2, "avg_pool_3x3")),
    ((1, "skip_connect"), (3, "dil_conv_3x3")),
)
SIZE = (49, 66)  # neither is a multiple of the strides, so that all resizing and padding is odd


@pytest.fixture(scope="module")
def network():
    """One with all kinds of operations, at strides 4 and 8, and moving statistics of its own."""
    tf.keras.utils.set_random_seed(0)
    made = auto_deeplab.build(
        Genotype((0, 1, 1, 0), (CELL,)),
        num_classes=CLASSES,
        filter_multiplier=4,
        stem_filters=(4, 4, 8),
        head_filters=8,
    )
    rng = np.random.default_rng(0)
    for variable in made.variables:
        if "moving" in variable.path:
            low = 0.5 if "variance" in variable.path else -0.5
            variable.assign(rng.uniform(low, low + 1, variable.shape))
    return made


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    coarse = tf.image.resize(rng.uniform(0, 255, (4, 6, 8, 3)), SIZE)
    return [np.asarray(one[None], np.uint8) for one in coarse]


def answer_of(network, size):
    function = formats.Plain(network, CLASSES, size).make_function(size)
    return lambda image: {k: v.numpy() for k, v in function(tf.constant(image)).items()}


def export(form, network, size, directory, precision, images, **options):
    plain = formats.Plain(network, CLASSES, size, **options)
    return formats.write(form, plain, directory, precision, images)


# What float16 and int8 may lose is measured here, of this network: 0.2 % and 9 % of the labels.
@pytest.mark.parametrize(("precision", "least"), [("float32", 1), ("float16", 0.99), ("int8", 0.8)])
@pytest.mark.parametrize(
    ("form", "size"),
    [("onnx", SIZE), ("onnx", None), ("litert", SIZE), ("openvino", SIZE), ("openvino", None)],
)
def test_engines_give_the_networks_labels(network, images, tmp_path, form, size, precision, least):
    if (form, precision) == ("openvino", "int8"):
        pytest.skip("it is refused")
    path = export(form, network, size, tmp_path, precision, images)
    found = parity.compare(
        answer_of(network, size), formats.load(form, path), images, class_names=NAMES
    )
    assert found["equal_labels"] >= least and found["num_images"] == 4
    if precision == "float32":
        assert found["max_logit_difference"] <= 1e-4 * found["largest_logit"]
    assert found["median_ms"] > 0 and found["network_median_ms"] > 0


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_images_of_any_size(network, tmp_path, form):
    """One file answers for all; several at once too."""
    path = export(form, network, None, tmp_path, "float32", [], probabilities=True)
    answer, wanted = formats.load(form, path), answer_of(network, None)
    rng = np.random.default_rng(2)
    for shape in ((1, 33, 33), (1, 64, 97), (3, 40, 41), (1, 1, 1)):
        image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
        found, logits = answer(image), wanted(image)["logits"]
        np.testing.assert_allclose(found["logits"], logits, atol=1e-4 * np.abs(logits).max())
        assert found["labels"].dtype == np.uint8 and found["labels"].shape == shape
        np.testing.assert_allclose(found["probabilities"].sum(-1), 1, atol=1e-5)


def test_graphs_hold_nothing_of_training(network, images, tmp_path):
    """BN is folded into kernels, which are constants; nothing is random, nothing is kept."""
    import onnx
    import openvino

    model = onnx.load(export("onnx", network, None, tmp_path, "float32", []))
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "Dropout", "RandomUniform", "RandomNormal", "If"}
    constants = {one.name for one in model.graph.initializer}
    kernels = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    assert len(kernels) > 10 and set(kernels) <= constants
    (image,) = model.graph.input
    assert image.name == "images" and image.type.tensor_type.elem_type == onnx.TensorProto.UINT8

    read = openvino.Core().read_model(export("openvino", network, None, tmp_path, "float32", []))
    kinds = {one.get_type_name() for one in read.get_ops()}
    assert "Convolution" in kinds
    assert not [kind for kind in kinds if kind.startswith(("BatchNorm", "Random", "ReadValue"))]

    # LiteRT knows no BN and no variables; an operation of TensorFlow's own would be a Flex one.
    content = export("litert", network, SIZE, tmp_path, "float32", images).read_bytes()
    assert b"Flex" not in content and b"VAR_HANDLE" not in content


@pytest.mark.parametrize(
    ("form", "precision", "size", "saying"),
    [
        ("litert", "float32", None, "--export_format=litert has images of one size alone"),
        ("openvino", "int8", SIZE, "--export_precision=int8 is not made for openvino"),
    ],
)
def test_what_cannot_be_is_refused(form, precision, size, saying):
    with pytest.raises(UsageError, match=saying):
        formats.check(form, precision, size)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(formats.PACKAGES, "onnx", ("no_such_package",))
    with pytest.raises(UsageError, match=r"needs no_such_package: pip install .*\[export\]"):
        formats.check("onnx", "float32", None)


def test_a_converter_that_fails_is_said_in_a_line(network, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("first\nthe reason")

    monkeypatch.setattr(formats, "_write_onnx", fail)
    with pytest.raises(RunError, match="--export_format=onnx: the converter fails: the reason"):
        export("onnx", network, None, tmp_path, "float32", [])


def test_what_is_compared():
    """Two images of 2 x 2 pixels, by hand."""
    truth = [np.array([[[0, 1], [255, 1]]]), np.array([[[1, 1], [0, 0]]])]
    wanted = [np.array([[[0, 1], [0, 1]]]), np.array([[[1, 1], [0, 1]]])]
    found = [np.array([[[0, 1], [0, 1]]]), np.array([[[1, 0], [0, 0]]])]

    def stored(labels, shift):
        """Stands in for an engine: image k has the k-th answer."""
        return lambda image: {
            "labels": labels[int(image.ravel()[0])],
            "logits": np.full([1, 2, 2, 2], 3.0) + shift,
        }

    images = [np.full([1, 2, 2, 3], number, np.uint8) for number in range(2)]
    result = parity.compare(
        *(stored(wanted, 0), stored(found, 0.25), images, truth), class_names=["a", "b"]
    )
    # Of 8 pixels 6 are the same.
    assert result["equal_labels"] == 6 / 8
    assert result["max_logit_difference"] == 0.25 and result["largest_logit"] == 3
    # Of the 7 pixels that are not void the network has 1 wrong: IoU 2/3 and 4/5; the engine one
    # other: 3/4 and 3/4.
    assert result["network_miou"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert result["miou"] == pytest.approx(3 / 4)
    bare = parity.compare(
        lambda image: {"labels": wanted[0]},
        lambda image: {"labels": wanted[0]},
        images,
        class_names=["a", "b"],
    )
    assert bare["equal_labels"] == 1 and bare["max_logit_difference"] is None
    assert "miou" not in bare
