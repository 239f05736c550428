"""What a search can do beyond the paper, by the commands that a user types."""

import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from auto_deeplab.space import genotype
from tests.command import TINY_NETWORK, TINY_SEARCH, train_here
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert

OPERATIONS = "--operations=sep_conv_3x3,skip_connect,none"
WEIGHTS = ",".join(["2"] + ["1"] * 18)
BEYOND = (
    *("--alpha_sharing=layer", "--partial_channels=2", "--second_order"),
    f"--class_weights={WEIGHTS}",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("options")
    convert("cityscapes", str(write_cityscapes(root / "source", train=8)), str(root / "data"))
    return root


@pytest.fixture(scope="module")
def table(root):
    path = root / "table.json"
    done = train_here(
        *("--mode=profile", f"--cost_table={path}", OPERATIONS, "--num_blocks=2"),
        *("--num_layers=2", "--crop_size=33", "--filter_multiplier=2", "--stem_filters=4,4,4"),
    )
    assert done.code == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert 0 < summary["cheapest"] < summary["dearest"]
    return path, summary


def search(root, *flags):
    return train_here(
        *("--mode=search", f"--data_dir={root / 'data'}", f"--model_dir={root / 'search'}"),
        *(*TINY_SEARCH, OPERATIONS, "--epochs=2", "--alpha_start_epoch=1", *flags),
    )


@pytest.fixture(scope="module")
def searched(root, table):
    path, summary = table
    budget = f"--cost_budget={(summary['cheapest'] + summary['dearest']) / 2}"
    flags = (*BEYOND, f"--cost_table={path}", budget, "--cost_weight=1000")
    done = search(root, *flags)
    assert done.code == 0, done.stderr
    return root / "search", flags


def test_a_search_with_everything(searched, table):
    directory, _ = searched
    rows = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[1]["loss_arch"] > 0
    for row in rows:
        # No cell can cost less or more than the table says.
        assert table[1]["cheapest"] < row["expected_cost"] < table[1]["dearest"]
        # One block of two inputs, one of three, whose weights are nearly alike at the begin.
        assert 0 < row["edge_entropy"] <= (np.log(2) + np.log(3)) / 2 + 1e-6
        assert row["cell_of_layer"] == [0, 1] and len(row["cells"]) == 2 and "cell" not in row
    # Nearly uniform alphas and betas are above the budget, and here little else counts.
    assert rows[1]["expected_cost"] < rows[0]["expected_cost"]
    found = genotype.load(directory / "genotype.json")
    assert found.cell_of_layer == (0, 1) and found.meta["alpha_sharing"] == "layer"
    assert found.meta["partial_channels"] == 2 and np.shape(found.meta["edge_weights"]) == (2, 5)
    for name in ("network", "cell", "history"):
        with Image.open(directory / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 200


def test_a_search_with_everything_goes_on(root, searched):
    """From the checkpoint of its first report it comes to the same end, edge weights included."""
    directory, flags = searched
    copy = root / "copied"
    shutil.copytree(directory, copy)
    for path in (copy / "checkpoints").glob("ckpt-4.*"):
        path.unlink()
    done = search(root, f"--model_dir={copy}", *flags)
    assert done.code == 0 and "search goes on at step 2 of 4" in done.stderr, done.stderr
    rows, again = (
        [json.loads(line) for line in (one / "history.jsonl").read_text().splitlines()]
        for one in (directory, copy)
    )
    for name in ("step", "loss_arch", "val_miou", "alpha", "beta", "edge_weights", "path"):
        assert rows[1][name] == again[1][name], name
    assert rows[0]["edge_weights"] != rows[1]["edge_weights"]
    found, wanted = (genotype.load(one / "genotype.json") for one in (copy, directory))
    assert found.meta["edge_weights"] == wanted.meta["edge_weights"]


def test_a_search_goes_on_with_the_stem_that_it_began_with(root):
    # Without the flag, earlier versions took 64, 64, 128.
    directory = root / "earlier"
    command = (
        *("--mode=search", f"--data_dir={root / 'data'}", "--operations=skip_connect,none"),
        *("--num_layers=1", "--num_blocks=2", "--filter_multiplier=3", "--crop_size=33"),
        *("--epochs=2", "--alpha_start_epoch=1", "--max_eval_images=1"),
    )

    def stem(directory):
        return json.loads((directory / "run.json").read_text())["identity"]["stem_filters"]

    done = train_here(*command, f"--model_dir={directory}", "--stem_filters=64,64,128")
    assert done.code == 0, done.stderr
    for path in (directory / "checkpoints").glob("ckpt-4.*"):
        path.unlink()
    done = train_here(*command, f"--model_dir={directory}")
    assert done.code == 0 and "search goes on at step 2 of 4" in done.stderr, done.stderr
    assert stem(directory) == [64, 64, 128]
    other = train_here(*command, f"--model_dir={directory}", "--stem_filters=3,6").error
    assert "--stem_filters is [3, 6], but [64, 64, 128] in the run" in other

    # A new one takes B F / 2 and B F.
    done = train_here(*command, f"--model_dir={root / 'new'}")
    assert done.code == 0, done.stderr
    assert stem(root / "new") == [3, 6]
    # Its flags.cfg does not name them: run.json knows.
    done = train_here(f"--flagfile={root / 'new' / 'flags.cfg'}")
    assert done.code == 0 and "search goes on at step 4 of 4" in done.stderr, done.stderr


def test_a_search_ends_with_many_skip_connections_and_stays_ended(root):
    """One operation of two is skip_connect; none is never decoded: all four of a cell are."""
    directory = root / "collapsed"
    command = (
        *("--mode=search", f"--data_dir={root / 'data'}", f"--model_dir={directory}"),
        *(*TINY_SEARCH, "--operations=skip_connect,none", "--epochs=4", "--alpha_start_epoch=1"),
        *("--stop_at_skip_connects=4", "--alpha_hessian_batches=1"),
    )
    done = train_here(*command)
    assert done.code == 0, done.stderr
    assert "ends at step 4 of 8 with 4 skip-connections in a cell" in done.stderr
    rows = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    # The first report is of the weights alone.
    assert [row["step"] for row in rows] == [2, 4]
    assert all(np.isfinite(row["alpha_hessian"]) for row in rows)
    assert genotype.load(directory / "genotype.json").meta["step"] == 4
    before = (directory / "history.jsonl").read_bytes()
    again = train_here(*command)
    assert again.code == 0 and "search goes on at step 4 of 8" in again.stderr, again.stderr
    assert (directory / "history.jsonl").read_bytes() == before
    # From an earlier checkpoint it comes to the same end.
    for path in (directory / "checkpoints").glob("ckpt-4.*"):
        path.unlink()
    assert train_here(*command).code == 0
    last = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()][-1]
    for name in ("step", "loss_arch", "val_miou", "alpha", "alpha_hessian"):
        assert last[name] == rows[-1][name], name
    # What is measured changes nothing.
    plain = root / "unwatched"
    assert train_here(*command[:-1], f"--model_dir={plain}").code == 0
    unwatched = [json.loads(line) for line in (plain / "history.jsonl").read_text().splitlines()]
    assert "alpha_hessian" not in unwatched[-1]
    for one, other in zip(rows, unwatched, strict=True):
        for name in ("step", "loss_w", "val_miou", "alpha", "beta"):
            assert one[name] == other[name], name
    assert rows[-1]["loss_arch"] == unwatched[-1]["loss_arch"]


def test_skip_connections_that_no_cell_can_have_are_refused(root):
    def refused(*flags):
        done = search(root, "--model_dir=" + str(root / "nothing"), *flags)
        assert done.code == 2 and not (root / "nothing").exists()
        return done.error

    # Two blocks have four operations.
    assert "--num_blocks=2 has 4" in refused("--stop_at_skip_connects=5")
    without = refused("--stop_at_skip_connects=2", "--operations=sep_conv_3x3,none")
    assert "skip_connect is not among --operations" in without


def test_what_was_found_can_be_decoded_again_and_trained(root, searched):
    directory, _ = searched
    before = (directory / "genotype.json").read_bytes()
    done = train_here("--mode=decode", f"--model_dir={directory}")
    assert done.code == 0, done.stderr
    assert "cell 1:" in done.stderr and "cell of each layer: 0 1" in done.stderr
    assert (directory / "genotype.json").read_bytes() == before
    training = (
        *("--mode=train", f"--genotype={directory / 'genotype.json'}", *TINY_NETWORK),
        *(f"--data_dir={root / 'data'}", f"--model_dir={root / 'train'}"),
        *("--train_steps=2", "--batch_norm_decay=0.1"),
    )
    done = train_here(*training, f"--init_checkpoint={directory}")
    assert done.code == 2 and f"--init_checkpoint={directory} is a run of --mode=search" in (
        done.error
    )
    done = train_here(*training)
    assert done.code == 0, done.stderr
    assert genotype.load(root / "train" / "genotype.json").cell_of_layer == (0, 1)


def test_a_search_from_before_some_flags_goes_on_with_their_defaults(root, searched):
    directory, flags = searched
    record = json.loads((directory / "run.json").read_text())
    for flag in ("arch_betas", "gradient_clip_norm"):
        del record["identity"][flag]
    (directory / "run.json").write_text(json.dumps(record))
    done = search(root, *flags, "--arch_betas=0.5,0.999")
    assert "--arch_betas is [0.5, 0.999], but [0.9, 0.999] in the run" in done.error
    assert search(root, *flags, "--arch_betas=0.9,0.999").code == 0  # finished already


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ("--alpha_sharing=level", "alpha_sharing"),
        ("--partial_channels=1", "partial_channels"),
        ("--second_order=false", "second_order"),
        ("--stop_at_skip_connects=3", "stop_at_skip_connects"),
        ("--arch_betas=0.5,0.999", "arch_betas"),
        ("--gradient_clip_norm=5", "gradient_clip_norm"),
        ("--cost_weight=11", "cost_weight"),
        ("--cost_budget=1", "cost_budget"),
        ("--class_weights=" + ",".join(["1"] * 19), "class_weights"),
    ],
)
def test_another_option_is_another_search(root, searched, changed, name):
    done = search(root, *searched[1], changed)
    assert done.code == 2 and f"--{name} is " in done.error


def test_a_longer_search_is_another_search_whose_command_is_told(root, searched):
    directory, flags = searched
    done = search(root, *flags, "--epochs=3")
    assert done.code == 2 and f"--epochs is 3, but 2 in the run that --model_dir={directory}" in (
        done.error
    )
    assert f"--mode=train can train what this one found, {directory}/genotype.json" in done.error
    command = shlex.split(done.error.partition("begins anew: ")[2].partition(" (")[0])
    assert command[:2] == ["python", "auto_deeplab/train.py"]
    assert [word for word in command if "model_dir" in word] == [f"--model_dir={directory}_3"]
    assert not {"--epochs=3", "--mode=search", *flags} - {*command}
    assert "init_checkpoint" not in " ".join(command)
    # A shorter one is any other search.
    assert "another directory" in search(root, *flags, "--epochs=1", "--alpha_start_epoch=0").error


def test_the_tables_content_is_the_searchs_not_its_path(root, searched, table):
    _, flags = searched
    copy = root / "copy.json"
    copy.write_bytes(table[0].read_bytes())
    assert search(root, *flags, f"--cost_table={copy}").code == 0  # finished already
    content = json.loads(copy.read_text())
    content["settings"]["filter_multiplier"] += 1
    copy.write_text(json.dumps(content))
    done = search(root, *flags, f"--cost_table={copy}")
    assert done.code == 2 and "--cost_table is " in done.error


def test_bad_tables(root, table):
    def refused(*flags):
        done = search(root, "--model_dir=" + str(root / "nothing"), *flags)
        assert done.code == 2 and not (root / "nothing").exists()
        return done.error

    budget = ("--cost_weight=1", "--cost_budget=1")
    assert "--cost_budget is needed" in refused("--cost_weight=1", f"--cost_table={table[0]}")
    assert "--cost_table is needed" in refused(*budget)
    assert "nowhere.json" in refused(*budget, "--cost_table=nowhere.json")
    other = refused(*budget, f"--cost_table={table[0]}", "--num_blocks=3")
    assert "2 blocks" in other and "3" in other
    missing = refused(*budget, f"--cost_table={table[0]}", "--operations=dil_conv_3x3,none")
    assert "dil_conv_3x3" in missing
    (root / "genotype.json").write_text('{"format": 1}')
    assert "--cost_table" in refused(*budget, f"--cost_table={root / 'genotype.json'}")
