"""The flagfiles: they parse, hold the paper's values, and are written so that absl reads them."""

import contextlib
import re
import shlex
import string

import pytest
from absl import flags
from absl.testing import flagsaver

from auto_deeplab import train
from auto_deeplab.modes import mode_flags
from auto_deeplab.modes.flag_definitions import DEFAULTS, MODES, NEEDED
from auto_deeplab.runs.run_record import NETWORK
from auto_deeplab.runs.saved_network import make_network
from auto_deeplab.space import genotype
from official.flagfiles import expand, locate
from tests.command import CONFIGS, ROOT

ALL = sorted(path.name for path in CONFIGS.glob("*.cfg"))
RECIPES = sorted(path.name for path in CONFIGS.glob("recipes/*.cfg"))


@contextlib.contextmanager
def parsed(config, *arguments):
    """The flags as train.py sees them."""
    with flagsaver.flagsaver():
        mode = "search" if "search" in config else "eval" if "eval" in config else "train"
        for name, value in DEFAULTS.get(mode, {}).items():
            flags.FLAGS.set_default(name, value)
        given = ["train.py", f"--mode={mode}", f"--flagfile={CONFIGS / config}", *arguments]
        flags.FLAGS(expand(given))
        yield flags.FLAGS


def test_the_flagfiles_of_the_contract_are_there():
    assert {
        *(f"train_cityscapes_{size}.cfg" for size in "sml"),
        *("search_cityscapes.cfg", "quickstart_search.cfg", "quickstart_train.cfg"),
    } <= set(ALL)


@pytest.mark.parametrize("config", ALL)
def test_every_flagfile_parses_and_says_what_it_is_for(config):
    text = (CONFIGS / config).read_text()
    assert "train.py --mode=" in text or "make quickstart" in text
    # The command in the comment is that of this file.
    named = re.findall(r"auto_deeplab/configs/(\S+)", text)
    assert config in named or "make quickstart" in text
    assert set(named) <= set(ALL)
    check_lines(text)
    with parsed(config) as values:
        assert values.data_dir is None and values.model_dir is None  # these are the user's


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_parts_of_flagfiles(recipe):
    check_lines((CONFIGS / "recipes" / recipe).read_text())
    texts = [path.read_text() for path in CONFIGS.rglob("*.cfg")]
    assert any(re.search(f"^--flagfile=(recipes/)?{recipe}$", text, re.M) for text in texts)


def check_lines(text):
    assert text.startswith("# ")
    lines = text.splitlines()
    for line in lines:
        assert len(line) <= 100, line
        # absl would take a comment behind a value as part of the value.
        assert line.startswith("# ") or re.fullmatch(r"--[a-z_]+(=[^ #]+)?", line), line
    flag_lines = [line for line in lines if line.startswith("--")]
    assert len(set(flag_lines)) == len(flag_lines)


def test_nothing_is_said_twice():
    # A line that a flagfile adds to those that it names changes something.
    for path in CONFIGS.rglob("*.cfg"):
        lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
        nested = [line for line in lines if line.startswith("--flagfile=")]
        inherited = {}
        for line in expand(nested, str(path.parent)):
            name, _, value = line.partition("=")
            inherited[name] = value
        for line in lines:
            name, _, value = line.partition("=")
            assert name == "--flagfile" or inherited.get(name) != value, (path, line)


def test_the_search_has_the_papers_values():
    with parsed("search_cityscapes.cfg") as values:
        assert (values.num_layers, values.num_blocks, values.filter_multiplier) == (12, 5, 8)
        assert (values.crop_size, values.batch_size) == ([321, 321], 2)
        assert (values.epochs, values.alpha_start_epoch) == (40, 20)
        assert (values.learning_rate, values.min_learning_rate) == (0.025, 0.001)
        assert (values.weight_decay, values.arch_weight_decay) == (3e-4, 1e-3)
        assert values.arch_learning_rate == 0.003
        assert len(values.operations) == 8
        assert values.stem_filters is None  # those of Sec. 3.2


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
        network = make_network(found, {name: values[name].value for name in NETWORK}, 19)
    count = sum(variable.shape.num_elements() for variable in network.trainable_variables)
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Table 3, then Table 4's first stage, then Tables 5 to 7; Sec. 5.2 for crops and steps.
        ("train_cityscapes_s_500k.cfg", (20, 769, 500_000, 1.0, "train")),
        ("train_cityscapes_s_1000k.cfg", (20, 769, 1_000_000, 1.0, "train")),
        ("train_cityscapes_s_1500k.cfg", (20, 769, 1_500_000, 1.0, "train")),
        ("train_cityscapes_s_coarse.cfg", (20, 769, 1_500_000, 0.8, "train_extra")),
        ("train_cityscapes_l_coarse.cfg", (48, 769, 1_500_000, 1.0, "train_extra")),
        *(
            (f"train_{data}_{size}.cfg", (filters, 513, steps, 1.0, split))
            for data, steps, split in (
                ("voc2012", 1_500_000, "train_aug"),
                ("coco", 4_000_000, "train"),
                ("ade20k", 4_000_000, "train"),
            )
            for size, filters in (("s", 20), ("m", 32), ("l", 48))
        ),
    ],
)
def test_the_other_trainings_of_the_tables(config, expected):
    filters, crop, steps, keep, split = expected
    with parsed(config) as values:
        assert values.genotype == "published" and values.filter_multiplier == filters
        assert values.crop_size == [crop, crop] and values.train_steps == steps
        assert values.drop_path_keep_prob == keep and values.train_split == split
        assert (values.learning_rate, values.batch_size) == (0.05, 16)
        assert (values.weight_decay, values.batch_norm_decay) == (4e-5, 0.9997)


def test_multi_scale_evaluation():
    with parsed("eval_multi_scale.cfg") as values:
        assert values.eval_scales == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75] and values.eval_flip
    with parsed("eval_multi_scale_cityscapes.cfg") as values:
        assert values.eval_scales == [0.75, 1.0, 1.25, 1.5, 1.75, 2.0] and values.eval_flip


def test_flags_cfg_says_the_same_as_the_command_line(tmp_path):
    given = ("--operations=skip_connect,none", "--eval_scales=0.5,1", "--checkpoint=somewhere")
    with parsed("search_cityscapes.cfg", "--genotype=published", *given) as values:
        lines = [mode_flags.format_flagfile(mode, values) for mode in MODES]
        (tmp_path / "flags.cfg").write_text("".join(lines))
        expected = {flag.name: flag.value for flag in values.get_key_flags_for_module(train)}
    with flagsaver.flagsaver():
        flags.FLAGS(["train.py", f"--flagfile={tmp_path / 'flags.cfg'}"])
        found = {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(train)}
    # A checkpoint says where one process started, not what the run is.
    assert found == expected | {"checkpoint": None}
    assert found["operations"] == ["skip_connect", "none"] and found["crop_size"] == [321, 321]


def commands_of_the_tables():
    """What docs/paper.md tells to type for the rows of the paper's tables."""
    text = (ROOT / "docs" / "paper.md").read_text()
    text = text.split("## Every row of Tables 2 to 7\n")[1].split("\n## ")[0]
    shell = {"C": "auto_deeplab/configs"}
    for name, command in re.findall(r'^    ([A-Z]+)="(python .*)"$', text, re.M):
        shell[name] = command
    typed = re.findall(r"`((?:\$[A-Z]+|python auto_deeplab/train.py) [^`]*|\$[A-Z]+)`", text)
    return [string.Template(command).substitute(shell) for command in typed]


def test_the_commands_of_the_tables_can_be_typed(monkeypatch):
    commands = commands_of_the_tables()
    assert len(commands) > 40
    monkeypatch.chdir(ROOT)
    for command in commands:
        python, script, *arguments = shlex.split(command)
        assert (python, script) == ("python", "auto_deeplab/train.py")
        with flagsaver.flagsaver():
            flags.FLAGS(expand([script, *arguments]))
            mode_flags.check_given(locate(arguments), flags.FLAGS)
            values = flags.FLAGS.flag_values_dict()
        for needed in NEEDED[values["mode"]]:
            assert values[needed] is not None, command
    # Every flagfile of a full training is some row's.
    named = set(re.findall(r"configs/(\S+\.cfg)", " ".join(commands)))
    assert named == {name for name in ALL if "quickstart" not in name and "small" not in name}
