"""--mode=demo: its examples, and what it refuses before the network takes its seconds."""

import numpy as np
import pytest
from PIL import Image

from auto_deeplab.modes import demo
from auto_deeplab.modes.data import Data
from auto_deeplab.report import demo_page
from official.errors import RunError, UsageError
from tests.command import TINY_GENOTYPE, TINY_NETWORK, train_here
from tests.miniature import SIZE, write_cityscapes
from tfrecords_tools.convert import convert


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data converted to half their size, and a training on them."""
    root = tmp_path_factory.mktemp("demo")
    source = str(write_cityscapes(root / "source"))
    convert("cityscapes", source, str(root / "half"), resize_factor=0.5)
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    done = train_here(
        *("--mode=train", f"--data_dir={root / 'half'}", f"--model_dir={root / 'run'}"),
        *(f"--genotype={root / 'genotype.json'}", *TINY_NETWORK, "--train_steps=1"),
        "--batch_norm_decay=0.1",
    )
    assert done.code == 0, done.stderr
    return root


@pytest.mark.parametrize(("scale", "factor"), [(None, 2), (1.0, 1)])
def test_the_network_sees_examples_at_the_scale_of_its_data(root, monkeypatch, scale, factor):
    sizes = []

    def serve(segment, about, *, port, folder, examples):
        # Photographs are halved, as the data were: so that examples are not halved twice, they are
        # as large as they were before their conversion.
        sizes.extend(Image.open(path).size for path in examples)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_page, "serve", serve)
    demo.demo(root / "run", data=Data(root / "half"), port=0, predict_scale=scale)
    half = np.array(SIZE[::-1]) // 2
    assert sizes == [tuple(factor * half)] * 2


def test_what_cannot_be_served_is_told_at_once(root, monkeypatch):
    def load(*arguments):
        pytest.fail("the network is loaded")

    monkeypatch.setattr(demo, "load_network", load)
    with pytest.raises(UsageError, match="--port=65536"):
        demo.demo(root / "run", port=65536)
    with pytest.raises(UsageError, match="--model_dir="):
        demo.demo(root / "none", port=0)

    def take(port):
        raise demo_page._make_port_error(port, "Address already in use")

    monkeypatch.setattr(demo_page, "find_port", take)
    with pytest.raises(RunError, match=r"--port=8000 on 127\.0\.0\.1: Address already in use"):
        demo.demo(root / "run", port=8000)
