"""The network in Keras' own hands: config, .keras, clone_model, summary, compile and fit."""

import inspect
import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import auto_deeplab
from auto_deeplab.modes.flag_definitions import DEFAULTS
from auto_deeplab.network.network import Network, draw_seeds
from auto_deeplab.runs import run_record
from auto_deeplab.space import genotype
from auto_deeplab.space.genotype import Genotype
from official import distribution
from official.segmentation_metrics import count_confusions, summarize
from official.sizes import Sizes
from tests.auto_deeplab.training import (
    CLASSES,
    VOID,
    assert_same,
    loss_of,
    random_batch,
    skip_without_convolutions,
    values,
)
from tests.command import ROOT

CELL = (
    ((1, "atrous_conv_3x3"), (0, "sep_conv_3x3")),
    ((2, "max_pool_3x3"), (1, "dil_conv_3x3")),
)
OTHER_CELL = (
    ((0, "avg_pool_3x3"), (1, "skip_connect")),
    ((2, "sep_conv_5x5"), (1, "atrous_conv_5x5")),
)
GENOTYPE = Genotype((0, 1, 0), (CELL, OTHER_CELL), (0, 1, 0), meta={"seed": 3})
OTHER_THAN_DEFAULT = {
    "num_classes": CLASSES,
    "filter_multiplier": 2,
    "stem_filters": (4, 6, 8),
    "batch_norm_decay": 0.8,
    "fine_tune_batch_norm": False,
    "sync_batch_norm": False,
    "drop_path_keep_prob": 0.7,
    "head_filters": 6,
    "low_level_filters": 4,
    "class_names": ("sky", "road", "car"),
    "palette": ((1, 2, 3), (4, 5, 6), (7, 8, 9)),
    "sizes": Sizes(0.5, 100),
    "seed": 11,
}
WIDTHS = {
    name: OTHER_THAN_DEFAULT[name]
    for name in ("filter_multiplier", "stem_filters", "head_filters", "low_level_filters")
}


def build(architecture=GENOTYPE, **options):
    return auto_deeplab.build(architecture, CLASSES, **WIDTHS, **options)


def data(*seeds, batch_size=4):
    """Batches of (image, label) as anyone's pipeline makes them; some pixels are void."""
    batches = [random_batch(seed) for seed in seeds]
    arrays = (np.concatenate([batch[key] for batch in batches]) for key in ("image", "label"))
    return tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size)


def compiled(network, **options):
    options = {"optimizer": keras.optimizers.SGD(0.05)} | options
    network.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=VOID),
        metrics=[keras.metrics.MeanIoU(CLASSES, "miou", ignore_class=VOID, sparse_y_pred=False)],
        **options,
    )
    return network


def fit(network, dataset, **options):
    return network.fit(dataset, shuffle=False, verbose=0, **options).history


def test_the_config_is_plain_json_and_makes_an_equal_network():
    arguments = inspect.signature(Network).parameters
    assert arguments.keys() - {"genotype"} == OTHER_THAN_DEFAULT.keys()
    for name, value in OTHER_THAN_DEFAULT.items():
        assert arguments[name].default != value, name
    network = Network(GENOTYPE, **OTHER_THAN_DEFAULT)
    config = network.get_config()
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    assert config.keys() == arguments.keys()
    again = Network.from_config(config)
    assert again.get_config() == config
    assert (again.genotype, again.genotype.meta) == (GENOTYPE, GENOTYPE.meta)
    assert again.sizes == OTHER_THAN_DEFAULT["sizes"]
    for own in (network, again):
        own.build((None, None, None, 3))
    shapes, shapes_again = ({v.path: v.shape for v in own.variables} for own in (network, again))
    assert shapes == shapes_again
    assert Network.from_config(Network(GENOTYPE, num_classes=2).get_config()).class_names is None


def test_what_is_known_later_is_in_the_config_too():
    network = build()
    network.class_names = ["a", "b", "c"]
    network.palette = np.arange(9).reshape(3, 3)
    network.sizes = Sizes(0.25)
    config = json.loads(json.dumps(network.get_config()))
    assert config["class_names"] == ["a", "b", "c"]
    assert config["palette"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert config["sizes"] == {"resize_factor": 0.25}


# What somebody does with the file, in a process that knows nothing of the one that wrote it.
LOAD = """
import sys
import numpy as np
from official.quiet import set_environment
set_environment()
import auto_deeplab.network.network  # registers Network
import keras
model = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[3], model(np.load(sys.argv[2])))
print(model.class_names, model.palette, model.sizes, model.optimizer.iterations.numpy())
"""


def test_a_keras_file_gives_the_same_bits_in_another_process(tmp_path):
    known = {name: OTHER_THAN_DEFAULT[name] for name in ("class_names", "palette", "sizes")}
    network = compiled(build(batch_norm_decay=0.5, **known))
    fit(network, data(0, 1))
    image = random_batch(2)["image"]
    network.save(tmp_path / "network.keras")
    np.save(tmp_path / "image.npy", image)
    files = [tmp_path / name for name in ("network.keras", "image.npy", "logits.npy")]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), network(image))
    # Weights, not initial values: those of another network answer differently.
    assert np.abs(build()(image) - network(image)).max() > 1e-3
    colors = [list(color) for color in known["palette"]]
    words = done.stdout.splitlines()[-1]
    assert words == f"['sky', 'road', 'car'] {colors} {Sizes(0.5, 100)} 2"


def test_a_clone_has_the_shapes_and_weights_of_its_own():
    network = build()
    clone = keras.models.clone_model(network)
    assert isinstance(clone, Network) and clone.get_config() == network.get_config()
    before, own = values(network.variables), values(clone.variables)
    assert {path: v.shape for path, v in own.items()} == {p: v.shape for p, v in before.items()}
    for path, value in own.items():
        assert np.any(value != before[path]) == path.endswith("kernel"), path
    clone.set_weights([weight + 1 for weight in clone.get_weights()])
    assert_same(values(network.variables), before)


def test_it_is_a_layer_of_a_functional_model():
    network, image = build(), random_batch(0)["image"]
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Softmax()(network(inputs)))
    assert model.output.shape == (None, None, None, CLASSES)
    np.testing.assert_allclose(model(image), tf.nn.softmax(network(image)), rtol=1e-6)


def test_summary_shows_shapes_and_counts(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # of the terminal that it is printed for
    network = Network(GENOTYPE, num_classes=CLASSES, **WIDTHS)
    network.build((2, 50, 129, 3))
    lines = []
    network.summary(line_length=190, print_fn=lines.append)
    table = "\n".join(lines)
    rows = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("│┃").split("│")]
        if len(cells) == 3 and cells[0]:
            name, shape, count = cells
            rows[name.split(" ")[0]] = (shape, int(count.replace(",", "")))
    # Padded to 65 x 129: at stride s, 64 / s + 1 times 128 / s + 1. A cell has B F s / 4 channels.
    assert {name: shape for name, (shape, _) in rows.items()} == {
        "stem": "((2, 33, 65, 6), (2, 17, 33, 8))",
        "cell_0": "(2, 17, 33, 4)",
        "cell_1": "(2, 9, 17, 8)",
        "cell_2": "(2, 17, 33, 4)",
        "aspp": "(2, 17, 33, 6)",
        "decoder": f"(2, 17, 33, {CLASSES})",
    }
    for layer in network.layers:
        assert rows[layer.name][1] == sum(np.prod(v.shape) for v in layer.variables)
    trainable = sum(np.prod(v.shape) for v in network.trainable_variables)
    assert f"Trainable params: {trainable:,}" in table
    # The shapes are what really comes.
    x = tf.zeros([2, 65, 129, 3])
    outputs = list(network.stem(x))
    assert str(tuple(tuple(output.shape) for output in outputs)) == rows["stem"][0]
    for cell in network.cells:
        outputs.append(cell(outputs[-1], outputs[-2]))
        assert str(tuple(outputs[-1].shape)) == rows[cell.name][0]
    x = network.aspp(outputs[-1])
    assert str(tuple(x.shape)) == rows["aspp"][0]
    x = network.decoder(x, outputs[1 + network.low_level_layer])
    assert str(tuple(x.shape)) == rows["decoder"][0]


def test_the_loss_of_fit_is_our_own():
    # Dropout too: the same seed makes the generator draw the same seeds for the examples.
    network = compiled(build(seed=5))
    twin = build(seed=5)
    twin.set_weights(network.get_weights())
    batch = random_batch(0)  # valid pixels: all, two thirds, two rows, none
    (loss,) = fit(network, data(0))["loss"]
    seeds = draw_seeds(keras.random.SeedGenerator(5), 4)
    logits = twin(batch["image"], training=True, seeds=seeds)
    assert loss == pytest.approx(float(loss_of(batch["label"], logits)), rel=1e-5)
    # What fit left behind: the moving statistics of that one pass.
    after = values(network.non_trainable_variables)
    for path, value in values(twin.non_trainable_variables).items():
        np.testing.assert_allclose(after[path], value, rtol=1e-4, atol=1e-7, err_msg=path)
    # Other seeds drop other features.
    other = twin(batch["image"], training=True, seeds=seeds + 7)
    assert loss != pytest.approx(float(loss_of(batch["label"], other)), rel=1e-5)


def test_pixels_that_are_void_have_no_influence():
    network = compiled(build())
    batch = random_batch(0)
    void = np.full_like(batch["label"], VOID)
    before = values(network.trainable_variables)
    for label, moves in ((void, False), (batch["label"], True)):
        (loss,) = fit(network, tf.data.Dataset.from_tensors((batch["image"], label)))["loss"]
        assert (loss != 0.0) == moves and np.isfinite(loss)
        after = values(network.trainable_variables)
        assert any(np.any(after[path] != before[path]) for path in before) == moves


def test_keras_metric_of_void_pixels_is_our_own():
    network = compiled(build())
    batches = [random_batch(seed) for seed in (0, 1)]
    loss, miou = network.evaluate(data(0, 1), verbose=0)
    image, label = (np.concatenate([b[key] for b in batches]) for key in ("image", "label"))
    logits = network(image)
    counts = count_confusions(
        tf.constant(label),
        tf.argmax(logits, -1, output_type=tf.int32),
        num_classes=CLASSES,
        ignore_label=VOID,
    )
    assert miou == pytest.approx(summarize(counts.numpy(), list("abc"))["miou"], rel=1e-6)
    assert 0.0 < miou < 1.0
    assert loss == pytest.approx(float(loss_of(tf.constant(label), logits)), rel=1e-5)


def test_fit_learns():
    keras.utils.set_random_seed(0)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    network = compiled(build(batch_norm_decay=0.9), optimizer=optimizer)
    history = fit(network, data(0).repeat(30), epochs=2)
    first, second = history["loss"]
    # Guessing costs ln 3 = 1.1.
    assert second < 0.5 * first < 0.5 * 1.2, history
    assert history["miou"][1] > history["miou"][0]
    # And it is known outside of training, with BN's moving statistics.
    assert network.evaluate(data(0), verbose=0)[1] > 0.6


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fit_in_low_precision(precision):
    skip_without_convolutions(precision, gradients=True)
    distribution.set_precision(precision)
    try:
        network = compiled(build())
        used = network.compute_dtype
        before = values(network.trainable_variables)
        (loss,) = fit(network, data(0))["loss"]
    finally:
        distribution.set_precision("float32")
    assert loss == pytest.approx(np.log(CLASSES), rel=0.1)
    assert {v.dtype for v in network.variables} == {"float32"}
    scales = isinstance(network.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales == (used == "float16")
    after = values(network.trainable_variables)
    assert all(np.isfinite(value).all() for value in after.values())
    assert any(np.any(after[path] != before[path]) for path in before)


# One cell of one block, as compiling takes long.
ONE_CELL = Genotype((0,), ((((0, "sep_conv_3x3"), (1, "skip_connect")),),))


def test_fit_compiled_by_xla_is_the_same():
    # Keras does so by itself where there is a GPU.
    plain, by_xla = (build(ONE_CELL, seed=4, drop_path_keep_prob=0.6) for _ in range(2))
    by_xla.set_weights(plain.get_weights())
    losses = [
        fit(compiled(network, jit_compile=jit_compile), data(0, 1), epochs=2)["loss"]
        for network, jit_compile in ((plain, False), (by_xla, True))
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_fit_on_two_replicas(two_replicas):
    with two_replicas.scope():
        network = compiled(build(ONE_CELL))
    (loss,) = fit(network, data(0))["loss"]
    # All logits are near 0 at first.
    assert loss == pytest.approx(np.log(CLASSES), rel=0.1)
    # Every replica draws seeds of its own.
    drawn = two_replicas.run(lambda: network._draw_seeds(2))
    seeds = np.concatenate(two_replicas.experimental_local_results(drawn))
    assert len(np.unique(seeds, axis=0)) == len(seeds) == 4


def test_seeds_are_drawn_where_none_are_given():
    image = random_batch(0)["image"]

    def answers(network):
        return [network(image, training=True).numpy() for _ in range(2)]

    # BN takes the moving statistics and every network has the same weights, large enough for the
    # image to reach the logits: what differs is what is dropped.
    weights = [4 * w if w.ndim == 4 else w for w in build().get_weights()]

    def fresh(**options):
        network = build(fine_tune_batch_norm=False, drop_path_keep_prob=0.5, **options)
        network.set_weights(weights)
        return network

    first, second = answers(fresh(seed=3))
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_array_equal(answers(fresh(seed=3)), [first, second])
    assert np.abs(answers(fresh(seed=4))[0] - first).max() > 1e-4
    found = []
    for seed in (8, 8, 9):
        keras.utils.set_random_seed(seed)
        found.append(answers(fresh()))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0][0] - found[2][0]).max() > 1e-4


def test_the_generator_is_no_part_of_the_network():
    # Checkpoints and averages go by `variables`; trainings of our own give seeds and draw none.
    keras.utils.set_random_seed(0)
    network = build()
    assert [v.path for v in network.variables] == [v.path for v in network.weights]
    assert {v.dtype for v in network.variables} == {"float32"}
    (generator,) = network._draw_seeds.args
    before = generator.state.numpy()
    seeds = np.zeros((4, 2), "int32")
    network(random_batch(0)["image"], training=True, seeds=seeds)
    network(random_batch(0)["image"])
    np.testing.assert_array_equal(generator.state, before)
    network(random_batch(0)["image"], training=True)
    assert np.any(generator.state.numpy() != before)

    # The initial weights are those of a network that draws no seed for its generator.
    initial = []
    for options in ({}, {"seed": 5}):
        keras.utils.set_random_seed(0)
        initial.append(values(build(**options).variables))
    assert_same(*initial)


def test_without_progress_drop_path_has_its_final_strength():
    network = build(drop_path_keep_prob=0.3, fine_tune_batch_norm=False)
    image, seeds = random_batch(0)["image"], np.arange(8, dtype="int32").reshape(4, 2)
    ours = {"training": True, "seeds": seeds}
    answer = network(image, **ours)
    np.testing.assert_array_equal(answer, network(image, progress=1.0, **ours))
    assert np.any(answer != network(image, progress=0.5, **ours))


def test_build_takes_a_genotype_by_object_name_or_file(tmp_path):
    GENOTYPE.save(tmp_path / "genotype.json")
    for given in (GENOTYPE, tmp_path / "genotype.json", str(tmp_path / "genotype.json")):
        assert build(given).genotype == GENOTYPE
    small = auto_deeplab.build("conv_deconv", 7, filter_multiplier=2, head_filters=4, seed=1)
    assert small.genotype == genotype.load("conv_deconv")
    assert small.built and small.get_config()["filter_multiplier"] == 2
    assert small(np.zeros((1, 33, 33, 3), "uint8")).shape == (1, 33, 33, 7)
    with pytest.raises(ValueError, match=r"'no\.json': no such file, and no preset"):
        auto_deeplab.build("no.json", 3)
    with pytest.raises(TypeError, match="filters"):
        auto_deeplab.build(GENOTYPE, 3, filters=2)


def test_what_is_not_said_is_as_on_the_command_line():
    arguments = inspect.signature(Network).parameters
    for name in (*run_record.NETWORK, "sync_batch_norm"):
        with flagsaver.flagsaver():
            if name in DEFAULTS["train"]:
                flags.FLAGS.set_default(name, DEFAULTS["train"][name])
            usual = flags.FLAGS[name].default
        usual = tuple(usual) if isinstance(usual, list) else usual
        assert arguments[name].default == usual, name


def test_the_code_of_the_document_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "keras.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert "aspp (ASPP)" in capsys.readouterr().out
    assert names["again"].class_names == ["light", "dark"]
    assert names["predicted"].shape == (8, 65, 65) and names["predicted"].max() <= 1
    losses = names["model"].history.history["loss"]
    assert len(losses) == 2 and losses[1] < losses[0]
