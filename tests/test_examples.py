"""The page to start from runs as it stands, on tiny data."""

import importlib.util

import pytest

from tests.command import ROOT
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert

PAGE = ROOT / "examples" / "search_in_one_page.py"


def test_it_is_one_page():
    assert len(PAGE.read_text().splitlines()) < 120


@pytest.mark.every_machine
def test_search_in_one_page(tmp_path, capsys):
    source = write_cityscapes(tmp_path / "source", train=8, val=2, size=(40, 56))
    convert("cityscapes", str(source), str(tmp_path / "data"))
    spec = importlib.util.spec_from_file_location("page", PAGE)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    size = {"num_layers": 2, "num_blocks": 2, "operations": ("sep_conv_3x3", "skip_connect")}
    page.SIZE.update(size)
    page.main(str(tmp_path / "data"), crops=(33, 41), steps=(3, 2))
    said = capsys.readouterr().out
    # Alpha and beta move from step 3 // 3 = 1 on; reports come every ten steps.
    assert "search 0: {'loss_w': " in said and "loss_arch" not in said
    assert "block 1 = " in said
    score = float(said.splitlines()[-1].removeprefix("mIoU of the classes present: "))
    assert 0 <= score < 0.5  # the labels are random
