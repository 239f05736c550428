"""The flagfiles: they parse, hold the paper's values, and are written so that absl reads them."""

import contextlib
import re

import pytest
from absl import flags
from absl.testing import flagsaver

from auto_deeplab import genotype, run_record, train
from auto_deeplab.flag_definitions import DEFAULTS, NETWORK
from tests.command import CONFIGS

ALL = sorted(path.name for path in CONFIGS.glob("*.cfg"))


@contextlib.contextmanager
def parsed(config, *arguments):
    """The flags as train.py sees them."""
    with flagsaver.flagsaver():
        mode = "search" if "search" in config else "train"
        for name, value in DEFAULTS[mode].items():
            flags.FLAGS.set_default(name, value)
        flags.FLAGS(["train.py", f"--mode={mode}", f"--flagfile={CONFIGS / config}", *arguments])
        yield flags.FLAGS


def test_the_flagfiles_of_the_contract_are_there():
    assert {
        *(f"train_cityscapes_{size}.cfg" for size in "sml"),
        *("search_cityscapes.cfg", "quickstart_search.cfg", "quickstart_train.cfg"),
    } <= set(ALL)


@pytest.mark.parametrize("config", ALL)
def test_every_flagfile_parses_and_says_what_it_is_for(config):
    text = (CONFIGS / config).read_text()
    assert text.startswith("# ")
    assert "train.py --mode=" in text or "make quickstart" in text
    for line in text.splitlines():
        assert len(line) <= 100
        # absl would take a comment behind a value as part of the value.
        assert line.startswith("# ") or re.fullmatch(r"--[a-z_]+(=[^ #]+)?", line), line
    with parsed(config) as values:
        assert values.data_dir is None and values.model_dir is None  # these are the user's


def test_the_search_has_the_papers_values():
    with parsed("search_cityscapes.cfg") as values:
        assert (values.num_layers, values.num_blocks, values.filter_multiplier) == (12, 5, 8)
        assert (values.crop_size, values.batch_size) == ([321, 321], 2)
        assert (values.epochs, values.alpha_start_epoch) == (40, 20)
        assert (values.learning_rate, values.min_learning_rate) == (0.025, 0.001)
        assert (values.weight_decay, values.arch_weight_decay) == (3e-4, 1e-3)
        assert values.arch_learning_rate == 0.003
        assert len(values.operations) == 8


@pytest.mark.parametrize(
    ("config", "filters", "keep", "millions"),
    [
        ("train_cityscapes_s.cfg", 20, 0.8, 10.15),
        ("train_cityscapes_m.cfg", 32, 1.0, 21.62),
        ("train_cityscapes_l.cfg", 48, 1.0, 44.42),
    ],
)
def test_s_m_l_are_the_networks_of_table_2(config, filters, keep, millions):
    with parsed(config) as values:
        assert values.filter_multiplier == filters and values.drop_path_keep_prob == keep
        assert (values.crop_size, values.batch_size) == ([769, 769], 16)
        assert (values.learning_rate, values.weight_decay) == (0.05, 4e-5)
        assert values.train_steps == 1_500_000
        found = genotype.load(values.genotype)
        network = train.new_network(found, {name: values[name].value for name in NETWORK}, 19)
    count = sum(variable.shape.num_elements() for variable in network.trainable_variables)
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


def test_flags_cfg_says_the_same_as_the_command_line(tmp_path):
    given = ("--operations=skip_connect,none", "--eval_scales=0.5,1", "--checkpoint=somewhere")
    with parsed("search_cityscapes.cfg", "--genotype=published", *given) as values:
        run_record.write_flags(
            str(tmp_path), values.get_key_flags_for_module(train.flag_definitions)
        )
        expected = {flag.name: flag.value for flag in values.get_key_flags_for_module(train)}
    with flagsaver.flagsaver():
        flags.FLAGS(["train.py", f"--flagfile={tmp_path / 'flags.cfg'}"])
        found = {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(train)}
    # A checkpoint says where one process started, not what the run is.
    assert found == expected | {"checkpoint": None}
    assert found["operations"] == ["skip_connect", "none"] and found["crop_size"] == [321, 321]
