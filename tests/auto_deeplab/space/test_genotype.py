import dataclasses
import json

import pytest

from auto_deeplab.space import genotype, search_space
from auto_deeplab.space.genotype import Genotype

BLOCK = ((0, "sep_conv_3x3"), (1, "skip_connect"))
CELL = (BLOCK, ((2, "max_pool_3x3"), (2, "atrous_conv_5x5")))
OTHER_CELL = (BLOCK, ((1, "dil_conv_3x3"), (0, "avg_pool_3x3")))


def as_json(**changes):
    data = {
        "format": 1,
        "path": [0, 1, 2],
        "cells": json.loads(json.dumps([CELL])),
        "cell_of_layer": None,
        "meta": {},
    }
    return {**data, **changes}


def test_json_round_trip(tmp_path):
    original = Genotype(
        (0, 1, 1), (CELL, OTHER_CELL), (0, 1, 0), {"seed": 3, "alpha": [[0.1, 0.7]], "x": None}
    )
    file = tmp_path / "new" / "genotype.json"
    original.save(file)
    again = genotype.load(file)
    assert again == original
    assert hash(again) == hash(original)
    assert again.meta == original.meta
    assert [path.name for path in file.parent.iterdir()] == ["genotype.json"]


def test_the_file_has_the_agreed_keys():
    data = json.loads(Genotype((0, 1), (CELL,), meta={"seed": 1}).to_json())
    assert data == {
        "format": 1,
        "path": [0, 1],
        "cells": json.loads(json.dumps([CELL])),
        "cell_of_layer": None,
        "meta": {"seed": 1},
    }


def test_a_failed_save_leaves_the_old_file(tmp_path):
    file = tmp_path / "genotype.json"
    Genotype((0,), (CELL,)).save(file)
    before = file.read_text()
    unwritable = Genotype((1,), (CELL,))
    unwritable.meta["late"] = object()  # json.dumps fails in the middle of saving
    with pytest.raises(TypeError):
        unwritable.save(file)
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def test_hand_written_file_may_leave_out_the_optional_keys():
    data = as_json()
    del data["cell_of_layer"], data["meta"]
    assert Genotype.from_json(json.dumps(data)) == Genotype((0, 1, 2), (CELL,))


def test_helpers():
    two = Genotype([0, 1, 1], [CELL, OTHER_CELL], [0, 1, 0])
    assert (two.num_layers, two.num_blocks) == (3, 2)
    assert [two.cell(layer) for layer in (1, 2, 3)] == [CELL, OTHER_CELL, CELL]
    assert Genotype((0, 1), (CELL,)).cell(2) == CELL
    for layer in (0, 4):
        with pytest.raises(IndexError):
            two.cell(layer)


def test_equality_is_about_the_network():
    assert Genotype((0,), (CELL,), meta={"seed": 1}) == Genotype((0,), (CELL,))
    assert Genotype((0,), (CELL,)) != Genotype((1,), (CELL,))
    assert Genotype((0,), (CELL,)) != Genotype((0,), (OTHER_CELL,))


def test_it_cannot_be_changed():
    meta = {"names": ["a"]}
    path = [0, 1]
    made = Genotype(path, (CELL,), meta=meta)
    path.append(7)
    meta["names"].append("b")
    assert made.path == (0, 1)
    assert made.meta == {"names": ["a"]}
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.path = (0,)


def test_presets():
    assert tuple(genotype.PRESET_PATHS) == (
        "published",
        "deeplabv3",
        "conv_deconv",
        "stacked_hourglass",
    )
    for name in genotype.PRESET_PATHS:
        made = genotype.load(name)
        assert (made.num_layers, made.num_blocks) == (12, 5)
        assert made.cells == (genotype.PUBLISHED_CELL,)
    strides = [search_space.stride(level) for level in genotype.load("published").path]
    assert strides == [4, 4, 4, 8, 16, 8, 16, 16, 32, 32, 16, 8]  # Fig. 3
    operations = [name for block in genotype.PUBLISHED_CELL for _, name in block]
    # Fig. 3's cell: three atrous and seven depthwise-separable convolutions.
    assert [operations.count(name) for name in search_space.OPERATIONS] == [4, 3, 1, 2, 0, 0, 0, 0]


def test_describe():
    text = genotype.load("published").describe()
    assert "12 layers at strides 4 4 4 8 16 8 16 16 32 32 16 8" in text
    assert "  block 2 = sep_conv_3x3(block 1) + sep_conv_3x3(H[l-2])" in text
    assert len(text.splitlines()) == 2 + 5
    two = Genotype((0, 1), (CELL, OTHER_CELL), (1, 0)).describe()
    assert "cell 1:" in two
    assert two.endswith("cell of each layer: 1 0")


BAD = {
    "no object": ([1, 2], "not a JSON object"),
    "format": (as_json(format=2), "format 2 is not the one read here, 1"),
    "unknown key": (as_json(cels=[]), "unknown key 'cels'"),
    "path is no list": (as_json(path="0001"), "path must be a list of whole numbers"),
    "path is empty": (as_json(path=[]), "path must be a list"),
    "path of floats": (as_json(path=[0, 1.0]), "path must hold whole numbers, not 1.0"),
    "path of booleans": (as_json(path=[False]), "path must hold whole numbers"),
    "level": (as_json(path=[1, 2, 3, 4]), "level 4 of layer 4 is not in 0..3"),
    "negative level": (as_json(path=[0, -1]), "level -1 of layer 2"),
    "first edge": (as_json(path=[2, 2]), "from the stem, .* from 0 to 2, but"),
    "jump": (as_json(path=[0, 1, 2, 0]), "from layer 3 to layer 4 the level goes from 2 to 0"),
    "no cells": (as_json(cells=[]), "cells must be a list of cells"),
    "cell without blocks": (as_json(cells=[[]]), r"cells\[0\] must be a list of blocks"),
    "no pairs": (as_json(cells=[[3]]), "block 0 must be a list of two"),
    "one input": (as_json(cells=[[BLOCK[:1]]]), "block 0 has 1 inputs: .* exactly two"),
    "three inputs": (as_json(cells=[[BLOCK + BLOCK[:1]]]), "block 0 has 3 inputs"),
    "no pair": (as_json(cells=[[[[0], BLOCK[0]]]]), r"\[0\] is not a pair"),
    "later block": (as_json(cells=[[[[2, "skip_connect"], BLOCK[0]]]]), r"input 2 is not in 0..1"),
    "input as text": (as_json(cells=[[[["0", "skip_connect"], BLOCK[0]]]]), "input '0' is not in"),
    "operation": (as_json(cells=[[[[0, "sep_3x3"], BLOCK[0]]]]), "unknown operation 'sep_3x3'"),
    "operation type": (as_json(cells=[[[[0, ["a"]], BLOCK[0]]]]), "unknown operation"),
    "none": (as_json(cells=[[[[0, "none"], BLOCK[0]]]]), "'none' is no operation of a finished"),
    "unequal cells": (
        as_json(cells=[CELL, CELL[:1]], cell_of_layer=[0, 0, 1]),
        "the same number of blocks",
    ),
    "which cell": (as_json(cells=[CELL, CELL]), "which of the 2 cells"),
    "too few layers": (as_json(cell_of_layer=[0]), "1 entries for 3 layers"),
    "no such cell": (as_json(cell_of_layer=[0, 1, 0]), "there is no cell 1"),
    "meta": (as_json(meta=[1]), "meta must be an object"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_genotype_files(case, tmp_path):
    data, message = BAD[case]
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as raised:
        genotype.load(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(file))


@pytest.mark.parametrize("key", ["format", "path", "cells"])
def test_missing_keys(key, tmp_path):
    file = tmp_path / "bad.json"
    data = as_json()
    del data[key]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"the key '{key}' is missing"):
        genotype.load(file)


@pytest.mark.parametrize("content", [b"", b"{'path': 1}", b"\x89PNG\xff\xfe", b"[[[[[["])
def test_files_that_are_not_json(content, tmp_path):
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.json' is not a genotype file: not ") as raised:
        genotype.load(file)
    assert "\n" not in str(raised.value)


def test_meta_must_be_json():
    for value in (float("nan"), object()):
        with pytest.raises(ValueError, match="meta must be plain JSON"):
            Genotype((0,), (CELL,), meta={"value": value})


def test_unknown_names_and_folders(tmp_path):
    with pytest.raises(ValueError, match=r"'publised'.*no such file.*published, deeplabv3, conv_d"):
        genotype.load("publised")
    with pytest.raises(ValueError, match="cannot be read"):
        genotype.load(tmp_path)


def test_more_layers_than_any_network_has(tmp_path):
    cells = [[[[0, "sep_conv_3x3"], [1, "sep_conv_3x3"]]]]
    with pytest.raises(ValueError, match="path has 1001 whole numbers: at most 1000 are read"):
        genotype.Genotype([0] * 1001, cells)
    with pytest.raises(ValueError, match="has 1001 blocks: at most 1000"):
        genotype.Genotype([0], [cells[0] * 1001])
    (tmp_path / "zeros.json").write_text(json.dumps({"format": 1, "path": [0] * 2**23}))
    with pytest.raises(ValueError, match=r"zeros.json' is not a .* larger than 16 MB"):
        genotype.load(tmp_path / "zeros.json")


def test_an_unknown_operation_is_told_in_short():
    cell = [[[0, "é" * 10**6], [1, "sep_conv_3x3"]]]
    with pytest.raises(ValueError, match=r"unknown operation 'é{50,56}") as error:
        genotype.Genotype([0], [cell])
    assert len(str(error.value)) < 400
