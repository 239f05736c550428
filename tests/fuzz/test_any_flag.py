"""Whatever a flag or a flagfile says, it is taken or there is one short line and exit code 2."""

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auto_deeplab import train
from auto_deeplab.modes.flag_definitions import MODES, USED
from official.command_line import LONGEST_WORD
from tests.command import train_here
from tests.fuzz.promise import LONGEST
from tests.fuzz.values import damaged

VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
VALUES |= st.sampled_from(
    [
        *("", "0", "-1", "1", "1e999", "-0", "nan", "inf", str(10**19), "9" * 5000, "1e-320", "é"),
        *("a,b,,c", ",", "1,", "true", "None", "~nosuchuser/x", "x" * 10**5, "1," * 10**5, "\n"),
        *("..", "/dev/null", "--mode=train", "0x10", "1_000", "½", "١", " 1 ", "[1]", "\udcff"),
    ]
)
FORMS = ("--{}={}", "-{}={}", "--no{}={}", "--no{}", "--{}", "--{}{}")
FLAGFILE = b"""# a comment
--mode=train
--data_dir=data
--model_dir=run
--crop_size=321,513
--learning_rate=0.05
--norandom_flip
"""


def answer(*arguments):
    """The one line of the command's error, or None; nothing is run."""
    with mock.patch.object(train, "run_mode"):
        done = train_here(*arguments)
    assert done.code in (0, 2) and done.stdout == "", done.stderr
    if done.code == 0:
        return None
    # Of long words there may be two: the file and the value.
    assert len(done.error) <= LONGEST + 2 * LONGEST_WORD and done.error.isprintable(), done.error
    return done.error


@given(name=st.sampled_from(sorted({*USED, "mode", "flagfile"})), value=VALUES, data=st.data())
def test_any_value_of_any_flag(name, value, data):
    mode = data.draw(st.sampled_from(sorted(USED.get(name, MODES))))
    form = data.draw(
        st.sampled_from(["--{}={}", "-{}={}", "--no{}={}", "--no{}", "--{}", "--{}{}"])
    )
    answer(f"--mode={mode}", "--model_dir=m", "--data_dir=d", form.format(name, value))


@given(argument=VALUES)
def test_any_argument(argument):
    answer("--mode=train", argument)


@given(content=damaged(FLAGFILE) | st.lists(VALUES, max_size=5).map("\n--".join))
def test_any_flagfile(folder, content):
    path = folder / "a.cfg"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="replace"))
    answer(f"--flagfile={path}")


@pytest.mark.parametrize(
    "name", ["seed", "learning_rate", "crop_size", "operations", "stem_filters"]
)
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_value_of_100_kb(name, sign):
    said = answer("--mode=train", f"--{name}={sign}{'7' * 10**5}")
    assert said is None or name in said


def test_a_name_of_5_kb():
    assert "999... is no flag" in answer("--mode=train", "--" + "9" * 5000)


@pytest.mark.parametrize("name", ["x" * 10**5, "batch_size" * 10**4, "no" * 10**5, "é" * 10**5])
def test_a_name_of_100_kb(name):
    assert answer("--mode=train", f"--{name}=1")


def test_what_to_do_is_said_after_a_value_of_many_words():
    with mock.patch.object(train, "run_mode"):
        done = train_here("--mode=train", f"--crop_size={'7 ' * 10**5}")
    assert done.code == 2 and len(done.error) < 2010
    assert done.error.startswith("error: flag --crop_size=7 7 ") and "at most" in done.error[-80:]


def test_a_line_of_100_kb_in_a_flagfile(folder):
    path = folder / "long.cfg"
    for line in ("--class_weights=" + "1," * 10**5, "x" * 10**5, f"--flagfile={'x' * 10**5}"):
        path.write_text(f"--mode=train\n{line}\n")
        assert answer(f"--flagfile={path}")
