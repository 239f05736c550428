"""What a new network's variables are drawn from, and how often dropout and drop path drop."""

import itertools

import keras
import numpy as np
import pytest

from auto_deeplab.network.network import Network, apply_dropout
from auto_deeplab.space.genotype import Genotype
from tests.auto_deeplab.training import random_batch, values

CELL = (
    ((1, "atrous_conv_3x3"), (0, "sep_conv_3x3")),
    ((2, "dil_conv_3x3"), (1, "sep_conv_5x5")),
)
GENOTYPE = Genotype((0, 1, 2, 1), (CELL,))
SIGMAS = 5
"""Tolerances are so many standard deviations: one test in a million fails by chance."""


def build(**options):
    network = Network(
        GENOTYPE,
        num_classes=19,
        filter_multiplier=8,
        stem_filters=(16, 16, 32),
        head_filters=64,
        **options,
    )
    network.build((None, None, None, 3))
    return network


@pytest.fixture(scope="module")
def initial():
    """{path: array} of a new network, of the same values in every run."""
    keras.utils.set_random_seed(0)
    return values(build().variables)


def kernels(initial, *parts):
    found = {
        path: value
        for path, value in initial.items()
        if path.split("/")[1].startswith(parts) and "kernel" in path and "logits" not in path
    }
    assert found
    return found


def fans(kernel):
    """The numbers of a kernel's inputs and outputs; those of a depthwise one [k, k, C, 1] are
    counted as if it were dense, by Keras and by the release's TF1 alike.
    """
    height, width, inputs, outputs = kernel.shape
    return height * width * inputs, height * width * outputs


def assert_uniform(kernel, limit, path):
    """Whether the values are uniform on [-limit, limit]."""
    share, count = kernel / limit, kernel.size
    # The largest of n is below x with the chance x^n: less than one in a million for this x.
    assert 1e-6 ** (1 / count) < np.abs(share).max() <= 1.0, path
    # On [-1, 1] the mean square is 1 / 3, and x^2 has the variance 1 / 5 - 1 / 9 = 4 / 45.
    assert abs(np.mean(share)) < SIGMAS * np.sqrt(1 / 3 / count), path
    assert abs(np.mean(share**2) - 1 / 3) < SIGMAS * np.sqrt(4 / 45 / count), path


def test_stem_and_cells_are_uniform_with_variance_1_over_3_fan_in(initial):
    found = kernels(initial, "stem", "cell_")
    names = {path.rsplit("/", 1)[1] for path in found}
    assert names == {"kernel", "depthwise_kernel", "pointwise_kernel"}
    for path, kernel in found.items():
        # Uniform on [-a, a] has the variance a^2 / 3, so a^2 is 1 / fan_in.
        assert_uniform(kernel, fans(kernel)[0] ** -0.5, path)


def test_aspp_and_decoder_are_uniform_by_glorot(initial):
    found = kernels(initial, "aspp", "decoder")
    assert len(found) == 6 + 3  # pooled, four branches, project; low level, two 3x3
    for path, kernel in found.items():
        # Glorot's variance is 2 / (fan_in + fan_out); a^2 is three times that.
        assert_uniform(kernel, np.sqrt(6 / sum(fans(kernel))), path)


def test_the_last_layer_is_a_truncated_normal(initial):
    kernel = initial["network/decoder/logits/kernel"].astype("float64")
    assert kernel.shape == (1, 1, 64, 19)
    # Of deviation 0.01 before what is beyond two of them is drawn again.
    z = kernel / 0.01
    assert 1.9 < np.abs(z).max() <= 2.0
    # With the density phi(2) = 0.053991 and the mass Phi(2) - Phi(-2) = 0.954500 that is left,
    # E z^2 = 1 - 4 phi(2) / 0.954500 = 0.773741: the real deviation is 0.0088.
    # E z^4 = 3 E z^2 - 16 phi(2) / 0.954500 = 1.416187, so z^2 has the variance 0.817512.
    assert abs(np.mean(z)) < SIGMAS * np.sqrt(0.773741 / z.size)
    assert abs(np.mean(z**2) - 0.773741) < SIGMAS * np.sqrt(0.817512 / z.size)


def test_no_two_kernels_begin_alike(initial):
    # One initializer object would give all kernels of a shape the same values.
    every = [value for path, value in initial.items() if "kernel" in path]
    alike = 0
    for one, other in itertools.combinations(every, 2):
        if one.shape == other.shape:
            alike += 1
            assert np.any(one != other)
    assert alike > 50


def test_everything_else_begins_at_0_or_1(initial):
    begin = {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": 1, "bias": 0}
    others = {path: value for path, value in initial.items() if "kernel" not in path}
    assert {path.rsplit("/", 1)[1] for path in others} == begin.keys()
    for path, value in others.items():
        assert np.all(value == begin[path.rsplit("/", 1)[1]]), path


def test_dropout_drops_a_tenth_of_each_example():
    shape = (40, 30, 20)
    seeds = np.array([(1, 2), (1, 3), (8, 2), (1, 2)], "int32")
    kept = apply_dropout(np.ones((4, *shape), "float32"), seeds).numpy()
    count = np.prod(shape)
    for example in kept:
        # Of n draws a share 0.1 is dropped, give or take sqrt(0.1 * 0.9 / n): 0.0019 here.
        dropped = np.mean(example == 0)
        assert abs(dropped - 0.1) < SIGMAS * np.sqrt(0.1 * 0.9 / count)
        # The mean stays what it was.
        np.testing.assert_allclose(example[example > 0], 1 / 0.9, rtol=1e-6)
    # Every example by its own seed.
    np.testing.assert_array_equal(kept[0], kept[3])
    for one, other in itertools.combinations(kept[:3], 2):
        # Two that are drawn apart differ where one of them alone is dropped: 2 * 0.1 * 0.9.
        differ = np.mean(one != other)
        assert abs(differ - 0.18) < SIGMAS * np.sqrt(0.18 * 0.82 / count)


def test_dropout_is_between_aspp_and_decoder(monkeypatch):
    network, seen = build(fine_tune_batch_norm=False), []
    for layer in (network.aspp, network.decoder):
        call = layer.call

        def record(*inputs, call=call, **options):
            output = call(*inputs, **options)
            seen.append((inputs, output))
            return output

        monkeypatch.setattr(layer, "call", record)
    image = random_batch(0)["image"]
    seeds = np.arange(8, dtype="int32").reshape(4, 2)
    for training in (False, True):
        seen.clear()
        network(image, training=training, seeds=seeds)
        ((_, encoded), ((decoded, _), _)) = seen
        wanted = apply_dropout(encoded, seeds) if training else encoded
        np.testing.assert_array_equal(decoded, wanted)


@pytest.mark.parametrize(
    ("progress", "kept"), [(0.5, (0.9, 0.8, 0.7, 0.6)), (2, (0.8, 0.6, 0.4, 0.2))]
)
def test_drop_path_keeps_its_share_in_every_layer(progress, kept):
    # 1 - t / T * l / L * (1 - p), with L = 4 and p = 0.2; t / T is 1 at most.
    network = build(drop_path_keep_prob=0.2)
    seeds = np.stack([np.full(1000, 7), np.arange(1000)], axis=1).astype("int32")
    mask = network._draw_drop_path(seeds, progress).numpy()
    assert mask.shape == (1000, 4, 2 * len(CELL))  # example, layer, operation
    for layer, share in enumerate(kept):
        own = mask[:, layer]
        assert abs(np.mean(own > 0) - share) < SIGMAS * np.sqrt(share * (1 - share) / own.size)
        np.testing.assert_allclose(own[own > 0], 1 / share, rtol=1e-6)
