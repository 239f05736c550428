"""Which flags belong to which modes: what is refused, what --help shows, what flags.cfg holds."""

import re
import shutil
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from auto_deeplab import train
from auto_deeplab.budget import cost_table
from auto_deeplab.modes import demo, flag_definitions, mode_flags
from auto_deeplab.modes.flag_definitions import (
    DEFAULTS,
    MODES,
    NEEDED,
    SEARCH_IDENTITY,
    TRAIN_IDENTITY,
    USED,
)
from auto_deeplab.report import demo_page
from auto_deeplab.search import execution
from official import distribution, images
from official.errors import UsageError
from tests.command import CONFIGS, ROOT, TINY_GENOTYPE, TINY_NETWORK, TINY_SEARCH, train_here
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert

FLAGS = flags.FLAGS


def defined():
    return {flag.name: flag for flag in FLAGS.get_key_flags_for_module(flag_definitions)}


def own(mode):
    return {name for name, modes in USED.items() if mode in modes}


def test_the_table_names_every_flag_and_nothing_else():
    assert USED.keys() == defined().keys()
    for modes in USED.values():
        assert modes and [mode for mode in MODES if mode in modes] == list(modes)  # in their order
    assert NEEDED.keys() == MODES.keys()


def test_what_a_mode_needs_and_decides_is_its_own():
    for mode in MODES:
        assert own(mode) >= {*NEEDED[mode], *DEFAULTS.get(mode, {})}
    assert own("search") >= set(SEARCH_IDENTITY) and own("train") >= set(TRAIN_IDENTITY)


def test_choices_are_those_of_the_modules_that_make_them():
    assert flag_definitions.DISTRIBUTION_STRATEGIES == distribution.STRATEGIES
    assert flag_definitions.PRECISIONS == distribution.PRECISIONS
    assert flag_definitions.RECOMPUTE == execution.RECOMPUTE
    assert tuple(cost_table.UNITS) == flag_definitions.COST_METRICS
    assert flag_definitions.LARGEST_IMAGE == images.MAX_PIXELS
    assert defined()["port"].default == demo.PORT


class Recorder:
    """The flags, and which of them have been asked for."""

    def __init__(self):
        self.read = set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(FLAGS, name)

    def __getitem__(self, name):
        return RecorderOfOne(name, self.read)

    def __contains__(self, name):
        return name in FLAGS


class RecorderOfOne:
    """One flag; its default tells nothing of what was given."""

    def __init__(self, name, read):
        self.name, self._read = name, read

    def __getattr__(self, attribute):
        if attribute != "default":
            self._read.add(self.name)
        return getattr(FLAGS[self.name], attribute)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data: 4 training and 2 validation images."""
    root = tmp_path_factory.mktemp("flags")
    convert("cityscapes", str(write_cityscapes(root / "source")), str(root / "data"))
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    (root / "train_again").symlink_to(root / "train")  # a second training, to compare
    return root


def closed_at_once(*arguments, **options):
    """A page that nobody looks at."""
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def asked(root):
    """Mode -> the flags that it asked for, by running each in a tiny form."""
    data, genotype = f"--data_dir={root / 'data'}", f"--genotype={root / 'genotype.json'}"
    found, trained = f"--model_dir={root / 'search'}", f"--model_dir={root / 'train'}"
    pictures = f"--input={root / 'source' / 'leftImg8bit' / 'val'}"
    out = f"--output_dir={root / 'out'}"
    table = f"--cost_table={root / 'costs.json'}"
    shape = ("--operations=sep_conv_3x3,none", "--num_blocks=2")
    commands = (
        ("profile", genotype, "--crop_size=33"),
        ("profile", table, *shape, "--crop_size=33", "--filter_multiplier=2"),
        (
            *("search", data, found, *TINY_SEARCH, *shape, "--epochs=1", "--alpha_start_epoch=0"),
            *(table, "--cost_weight=1", "--cost_budget=1"),
        ),
        ("decode", found),
        (
            *("train", data, trained, genotype, *TINY_NETWORK, "--train_steps=1"),
            "--batch_norm_decay=0.1",
        ),
        ("profile", trained, "--crop_size=33", "--latency"),
        ("eval", data, trained),
        ("predict", data, trained, out),
        ("predict", pictures, trained, out),
        ("demo", trained, data, "--port=0"),
        ("export", trained, data),
        ("compare", f"--runs={root / 'train*'}", f"--output={root / 'comparison.json'}"),
        ("draw", "--genotype=published", f"--output={root / 'drawn.svg'}"),
        ("sample", f"--output_dir={root / 'samples'}", "--num_layers=2", "--num_blocks=1"),
        (
            *("study", data, f"--model_dir={root / 'study'}", "--print_commands"),
            *("--search_flagfile=search_small.cfg", "--train_flagfile=train_small.cfg"),
        ),
        ("sample", f"--output_dir={root / 'ranked'}", found, data, "--num_samples=1"),
    )
    asked = {mode: set() for mode in MODES}
    for mode, *arguments in commands:
        recorder = Recorder()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "FLAGS", recorder)
            patch.setattr(demo_page, "serve", closed_at_once)
            done = train_here(f"--mode={mode}", *arguments)
        assert done.code == 0, done.stderr
        asked[mode] |= recorder.read & USED.keys()
    return asked


@pytest.mark.parametrize("mode", MODES)
def test_the_table_is_true_of_what_a_mode_asks_for(asked, mode):
    assert asked[mode] == own(mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_flag_of_other_modes_is_refused(mode):
    with flagsaver.flagsaver(mode=mode):
        for name, modes in USED.items():
            given = [(f"--mode={mode}", None), (f"--{name}=1", None), ("--verbosity=1", None)]
            if mode in modes:
                mode_flags.check_given(given[1:] if name == "mode" else given, FLAGS)
                continue
            with pytest.raises(UsageError) as refused:
                mode_flags.check_given(given, FLAGS)
            said = str(refused.value)
            assert said.startswith(f"--{name} is not used by --mode={mode}, only by ")
            assert set(re.findall(r"\w+", said.split("only by ")[1].split(":")[0])) == {
                *modes,
                *(["and"] if len(modes) > 1 else []),
            }


@pytest.mark.parametrize(
    "arguments",
    [
        ("--mode=search", "--train_steps=30"),
        ("--mode=search", "--train_steps", "30"),
        ("--train_steps=30", "--mode", "search"),
        ("--mode=decode", "--norandom_flip"),
        ("--mode=export", "-eval_flip"),
        ("--mode=eval", f"--flagfile={CONFIGS / 'train_small.cfg'}"),
        # The default is no excuse on the command line.
        ("--mode=search", "--ema_decay=0"),
    ],
)
def test_nothing_is_started_with_a_flag_of_another_mode(tmp_path, arguments):
    places = (f"--model_dir={tmp_path / 'new'}",)
    done = train_here(*arguments, *places)
    assert done.code == 2 and "is not used by --mode=" in done.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flag", ["--operations=sep_conv_3x3", "--cost_metric=latency", "--precision=bfloat16"]
)
def test_profile_refuses_what_is_for_a_cost_table_alone(flag):
    done = train_here("--mode=profile", "--genotype=published", flag)
    assert done.code == 2 and f"{flag.split('=')[0]} says how --cost_table is" in done.error


def test_profile_times_one_network_or_all():
    done = train_here("--mode=profile", "--cost_table=costs.json", "--latency")
    assert done.code == 2 and "--latency=True: --cost_table is for all networks" in done.error


def test_a_foreign_flag_in_a_flagfile_is_told_with_its_file():
    file = CONFIGS / "train_small.cfg"
    done = train_here("--mode=eval", f"--flagfile={file}")
    assert f"--crop_size in {file} is not used by --mode=eval, only by search, train" in done.error


def test_flags_cfg_holds_the_flags_of_its_mode(asked, root):
    for mode in ("search", "train"):
        lines = (root / mode / "flags.cfg").read_text().splitlines()
        names = {re.match(r"--(\w+)", line)[1] for line in lines}
        # As absl writes a switch that is off.
        names = {name if name in USED else name.removeprefix("no") for name in names}
        assert names <= own(mode)
        # What is left out has no value, or says where a process started.
        left_out = {name for name in own(mode) - names if FLAGS[name].default is not None}
        assert left_out == set()
        done = train_here(f"--flagfile={root / mode / 'flags.cfg'}")
        assert done.code == 0 and "goes on at step" in done.stderr


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "search"])
def test_a_runs_flags_cfg_is_for_no_other_mode(asked, root, mode):
    file = root / "search" / "flags.cfg"
    before = sorted(root.rglob("*"))
    for arguments in (
        [f"--mode={mode}", f"--flagfile={file}"],
        [f"--flagfile={file}", "--mode", mode],
    ):
        done = train_here(*arguments)
        assert done.code == 2 and f"--mode={mode}, but {file} is of --mode=search" in done.error
    assert sorted(root.rglob("*")) == before


def test_a_flags_cfg_of_an_earlier_version_resumes_its_run(asked, root, tmp_path):
    # Those held the flags of all modes.
    run = shutil.copytree(root / "train", tmp_path / "run")
    file = run / "flags.cfg"
    others = [
        flag.serialize()
        for name, flag in defined().items()
        if name not in own("train") and flag.value is not None
    ]
    assert len(others) > 15 and "--noeval_flip" in others
    file.write_text("\n".join([*file.read_text().splitlines(), *others]))
    done = train_here(f"--flagfile={file}", f"--model_dir={run}")
    assert done.code == 0 and "train goes on at step 1 of 1" in done.stderr
    with file.open("a") as lines:
        lines.write("\n--epochs=3")
    done = train_here(f"--flagfile={file}", f"--model_dir={run}")
    assert done.code == 2 and f"--epochs in {file} is not used by --mode=train" in done.error


def test_short_names_of_flagfiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = train_here("--mode=eval", "--flagfile=eval_multi_scale.cfg")
    assert "--data_dir is needed by --mode=eval" in done.error  # so the flagfile was read
    done = train_here("--mode=eval", "--flagfile=ade20k.cfg")  # of recipes/, which names another
    assert "retrain.cfg is not used by --mode=eval" in done.error
    (tmp_path / "ade20k.cfg").write_text("--eval_flip")
    assert "--data_dir is needed" in train_here("--mode=eval", "--flagfile=ade20k.cfg").error


# Help.


def test_help_is_quick_and_shows_all_flags():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "auto_deeplab" / "train.py", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0
    assert not re.search(r"\b(tensorflow|keras|matplotlib)\b", done.stderr)
    assert shown(done.stdout) == defined().keys() - {"mode"}
    check_layout(done.stdout)
    assert "Default: 321 (search), 769 (train), 1025,2049 (profile)." in done.stdout


@pytest.mark.parametrize("mode", MODES)
def test_help_of_a_mode_shows_its_flags_alone(mode):
    # Whatever else is wrong with the command line.
    done = train_here("--no_such_flag", "--help", f"--mode={mode}")
    assert done.code == 0 and done.stderr == ""
    assert shown(done.stdout) == own(mode) - {"mode"}
    check_layout(done.stdout)
    text = " ".join(done.stdout.split())
    for name in own(mode) & DEFAULTS.get(mode, {}).keys():
        said = re.search(rf"--{name}=.*? Default: (\S+)\.", text)[1]
        with flagsaver.flagsaver():
            FLAGS[name].parse(said)
            told = FLAGS[name].value
            FLAGS[name].parse(DEFAULTS[mode][name])
            assert told == FLAGS[name].value


def shown(text):
    return set(re.findall(r"^  --(?:\[no\])?(\w+)", text, re.M))


def check_layout(text):
    assert all(len(line) <= 100 for line in text.splitlines() if str(CONFIGS) not in line)


def test_flags_are_described_in_whole_sentences():
    for name, flag in defined().items():
        words = re.sub(r"^<.*?>: ", "", flag.help)
        assert re.fullmatch(r"[A-Z].{15,}\.", words), name
        assert not re.search(r"[a-z]\. [a-z]", words), name


# Commands in documents.


def documented():
    """(file, mode, flags) of what the documents and flagfiles say to type."""
    for file in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *CONFIGS.rglob("*.cfg")):
        text = re.sub(r"\\\n +", "", file.read_text())
        text = re.sub(r"\n#     (?=--)", " ", text)  # how flagfiles go on
        blocks = re.findall(r"^(?:    |#   )(.*--mode=.*)$", text, re.M)
        spans = re.findall(r"`((?:\.\.\.|python)[^`]*--mode=[^`]*)`", text)
        for command in (*blocks, *spans):
            mode = re.search(r"--mode=(\w+)", command)[1]
            yield file, mode, set(re.findall(r"--(\w+)", command)) - {"flagfile"}


def test_documented_commands_give_flags_of_their_mode():
    found = list(documented())
    assert len(found) > 50 and {mode for _, mode, _ in found} == MODES.keys()
    for file, mode, names in found:
        assert names <= own(mode), (file.name, mode, names - own(mode))


def test_the_documented_table_of_flags_is_complete_and_true():
    text = (ROOT / "docs" / "commands.md").read_text().partition("## Flags")[2]
    assert set(re.findall(r"--(\w+)", text)) >= USED.keys()
    rows = re.findall(r"^\| ([\w, ]+) \| (.*--.*) \|$", text, re.M)
    assert len(rows) > 10
    for modes, names in rows:
        for mode in MODES.keys() & set(re.findall(r"\w+", modes)):
            assert set(re.findall(r"--(\w+)", names)) <= own(mode), modes


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.cfg")))
def test_flagfiles_hold_flags_of_their_mode(config):
    text = (CONFIGS / config).read_text()
    modes = {mode for mode in MODES if config.startswith(mode)}
    modes |= {"search"} if "search" in config else {"train"} if "train" in config else set()
    (mode,) = modes
    done = train_here(f"--mode={mode}", f"--flagfile={config}")
    assert done.code == 2 and f"--data_dir is needed by --mode={mode}" in done.error, text
