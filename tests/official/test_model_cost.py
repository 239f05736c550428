"""Parameters and multiply-adds, against the paper's Table 2 and by hand."""

import json

import keras
import pytest
import tensorflow as tf

from auto_deeplab.network.network import Network
from auto_deeplab.space import genotype
from official import model_cost


def small_network(**options):
    cell = ((0, "sep_conv_3x3"), (1, "atrous_conv_3x3"))
    network = Network(
        genotype.Genotype((0, 1), ((cell,),)),
        num_classes=5,
        filter_multiplier=2,
        stem_filters=(4, 4, 8),
        head_filters=6,
        low_level_filters=3,
        **options,
    )
    network.build((None, None, None, 3))
    return network


@pytest.fixture(scope="module")
def small():
    return small_network()


def test_published_network_is_that_of_table_2():
    network = Network(genotype.load("published"), num_classes=19, filter_multiplier=20)
    network.build((None, None, None, 3))
    parts = model_cost.count(network, (1024, 2048))
    assert [part.name for part in parts] == [
        "stem",
        *(f"cell_{number}" for number in range(12)),
        "aspp",
        "decoder",
    ]
    assert sum(part.parameters for part in parts) == 10_147_427
    stem, *cells, aspp, decoder = parts
    assert (stem.parameters, aspp.parameters, decoder.parameters) == (112_832, 1_815_552, 1_301_043)
    assert sum(cell.parameters for cell in cells) == 6_918_000
    billions = [
        round(number / 1e9, 2)
        for number in (
            stem.multiply_adds,
            sum(cell.multiply_adds for cell in cells),
            aspp.multiply_adds,
            decoder.multiply_adds,
            sum(part.multiply_adds for part in parts),
        )
    ]
    assert billions == [30.01, 60.66, 58.39, 171.38, 320.45]


def test_a_small_network_counted_by_hand(small):
    # A 20 x 40 image is padded to 33 x 65: maps of 17 x 33, 9 x 17, 5 x 9 at strides 2, 4, 8.
    s2, s4, s8 = 17 * 33, 9 * 17, 5 * 9
    expected = {
        "stem": s2 * (27 * 4 + 36 * 4) + s4 * 36 * 8,
        # Both inputs to C = 2 channels; sep: twice (depthwise 9 per channel, pointwise); atrous.
        "cell_0": s4 * (8 * 2 + 4 * 2 + 2 * (2 * 9 + 2 * 2) + 9 * 2 * 2),
        # C = 4; the inputs have 2 and 8 channels at stride 4, all operations have stride 2.
        "cell_1": s4 * (2 * 4 + 8 * 4) + s8 * (2 * (4 * 9 + 4 * 4) + 9 * 4 * 4),
        # The image mean is one pixel; 1x1, three 3x3 and the projection of 5 * 6 channels.
        "aspp": 4 * 6 + s8 * (4 * 6 + 3 * 9 * 4 * 6 + 30 * 6),
        # Low-level feature: cell_0's 2 channels to 3.
        "decoder": s4 * (2 * 3 + 9 * (6 + 3) * 6 + 9 * 6 * 6 + 6 * 5),
    }
    parts = model_cost.count(small, (20, 40))
    assert {part.name: part.multiply_adds for part in parts} == expected


def test_operations_inside_called_functions_count(small):
    class Wrapped(keras.Model):
        @property
        def trainable_variables(self):
            return small.trainable_variables

        @tf.function
        def call(self, images, training=False):
            return small(images, training=training)

    assert model_cost.count(Wrapped(), (33, 33)) == model_cost.count(small, (33, 33))


def test_a_function_costs_what_its_parts_do(small):
    image = tf.TensorSpec([1, 20, 40, 3], tf.float32)
    total = sum(part.multiply_adds for part in model_cost.count(small, (20, 40)))
    assert model_cost.count_multiply_adds(small, [image]) == total
    assert model_cost.count_multiply_adds(lambda x: small(x) + small(x), [image]) == 2 * total


def test_low_precision_costs_the_same(small):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = small_network()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model_cost.count(half, (33, 33)) == model_cost.count(small, (33, 33))


def test_table_and_summary(small):
    parts = model_cost.count(small, (20, 40))
    total = sum(part.multiply_adds for part in parts)
    summary = json.loads(json.dumps(model_cost.summarize(parts, (20, 40))))
    assert summary["params_millions"] == pytest.approx(
        sum(v.shape.num_elements() for v in small.trainable_variables) / 1e6
    )
    assert summary["multi_adds_billions"] == pytest.approx(total / 1e9)
    assert summary["crop_size"] == [20, 40]
    assert summary["counted_size"] == [33, 65]
    assert list(summary["parts"]) == ["stem", "cell_0", "cell_1", "aspp", "decoder"]

    table = model_cost.format_table(parts, (20, 40))
    for word in (*summary["parts"], "total", "20 x 40", "33 x 65"):
        assert word in table
