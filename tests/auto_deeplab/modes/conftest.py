"""What the tests of wiring look at: built once for each of their files."""

import pytest

from auto_deeplab.budget import cost_table
from auto_deeplab.modes import search, train
from tests.auto_deeplab.modes.wiring import (
    CLASSES,
    GENOTYPE,
    SEARCH,
    SMALL,
    TRAIN,
    VOID,
    build,
    write_data,
)
from tests.command import train_here


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("wiring")
    write_data(root / "data")
    GENOTYPE.save(root / "genotype.json")
    return root


@pytest.fixture(scope="module")
def searching(root):
    operations = SEARCH["operations"].split(",")
    settings = {"filter_multiplier": 2, "num_blocks": 2, "operations": operations}
    settings |= {"crop_size": [33, 33], "stem_filters": [4, 4, 6], "head_filters": 4}
    cost_table.measure(settings | {"num_classes": 3}, "multiply_adds").save(root / "costs.json")
    flags = SEARCH | {"data_dir": root / "data", "cost_table": root / "costs.json"}
    return build(
        *(root, "search", search, "Search"), [f"--{name}={value}" for name, value in flags.items()]
    )


@pytest.fixture(scope="module")
def trained(root):
    """A training of four steps, saved after the second and the fourth."""
    done = train_here(
        *("--mode=train", f"--data_dir={root / 'data'}", f"--model_dir={root / 'trained'}"),
        *(f"--genotype={root / 'genotype.json'}", *SMALL, "--crop_size=33", "--batch_size=2"),
        *("--train_steps=4", "--save_every=2", "--batch_norm_decay=0.1", "--train_split=mine"),
        *("--eval_split=theirs", f"--num_classes={CLASSES}", f"--ignore_label={VOID}"),
    )
    assert done.code == 0, done.stderr
    return root / "trained"


@pytest.fixture(scope="module")
def training(root, trained):
    flags = TRAIN | {"data_dir": root / "data", "genotype": root / "genotype.json"}
    flags |= {"init_checkpoint": trained}
    return build(
        *(root, "train", train, "Retrain"), [f"--{name}={value}" for name, value in flags.items()]
    )
