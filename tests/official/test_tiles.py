"""Tiles lie over an image as they should, and a network that looks not far does not notice them."""

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.network.network import Network
from auto_deeplab.space.genotype import Genotype
from official.tiles import join, make_tiles
from tests.command import TINY_GENOTYPE


@pytest.mark.parametrize("size", [(1, 1), (32, 33), (100, 257), (513, 1000)])
@pytest.mark.parametrize(("tile", "overlap"), [((32, 32), 0), ((65, 97), 20), ((129, 65), 33)])
def test_every_pixel_is_kept_once_and_deep_enough(size, tile, overlap):
    times = np.zeros(size, int)
    for one in make_tiles(size, tile, overlap):
        times[one.kept_rows, one.kept_columns] += 1
        for seen, kept, side, most in zip(
            (one.rows, one.columns), (one.kept_rows, one.kept_columns), size, tile, strict=True
        ):
            assert seen.start % 32 == 0 and 0 < seen.stop - seen.start <= most
            assert seen.start <= kept.start < kept.stop <= seen.stop
            # Half of the overlap, or the image's own border.
            assert seen.start == 0 or kept.start - seen.start >= overlap // 2
            assert seen.stop == side or seen.stop - kept.stop >= overlap // 2
            # None is much smaller than asked for: a network sees little in a sliver.
            assert seen.stop - seen.start > min(side, most) - 32
    assert (times == 1).all()


def test_starts():
    (one,) = make_tiles((40, 50))
    assert one.rows == one.kept_rows == slice(0, 40) and one.columns == slice(0, 50)
    # With tiles of 64 and an overlap of 32 the step is 32: tiles begin at 0, 32, 64 of 128.
    starts = [tile.rows.start for tile in make_tiles((128, 10), (64, 64), 32)]
    assert starts == [0, 32, 64]


def test_what_sees_one_pixel_is_the_same_in_tiles():
    image = np.random.default_rng(0).integers(0, 256, (150, 210, 3))
    parts = [
        (tile, 2 * image[tile.rows, tile.columns]) for tile in make_tiles((150, 210), (65, 96), 10)
    ]
    assert len(parts) == 4 * 3  # rows from 0, 32, 64, 96, columns from 0, 64, 128
    np.testing.assert_array_equal(join(parts, (150, 210)), 2 * image)


def test_a_network_gives_pixels_away_from_the_tiles_borders_what_the_whole_image_gives():
    network = Network(Genotype.from_json(TINY_GENOTYPE), num_classes=3, filter_multiplier=2)
    size = (33, 1921)
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.float32)
    network(image[:, :, :33])
    # The image's mean is of all that the network sees, so a tile's is another one.
    for variable in network.aspp.pooled.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    whole = network(image)[0].numpy()
    # How far it looks, told by one column of pixels that changes.
    changed = image.copy()
    changed[:, :, 960] = 255 - changed[:, :, 960]
    touched = np.nonzero(np.abs(network(changed)[0].numpy() - whole).max((0, 2)))[0]
    # The head's third branch alone looks 36 pixels of stride 8 far.
    assert 288 < max(960 - touched.min(), touched.max() - 960) <= 368

    def answer(overlap):
        tiles = make_tiles(size, (33, 1089), overlap)
        return join([(one, network(image[:, :, one.columns])[0].numpy()) for one in tiles], size)

    scale = np.abs(whole).max()
    np.testing.assert_allclose(answer(2 * 368), whole, atol=1e-5 * scale)
    assert np.abs(answer(64) - whole).max() > 0.01 * scale
