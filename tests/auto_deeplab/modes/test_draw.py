"""--mode=draw: the picture of a preset or a file, and what is refused."""

import pytest

from auto_deeplab.modes import draw
from auto_deeplab.modes.flag_definitions import USED
from auto_deeplab.space import genotype
from tests.command import TINY_GENOTYPE, train_here


def test_a_preset_and_a_file(tmp_path):
    done = train_here(
        "--mode=draw", "--genotype=published", f"--output={tmp_path / 'new' / 'a.svg'}"
    )
    assert done.code == 0 and "path: 12 layers" in done.stderr
    assert "<svg" in (tmp_path / "new" / "a.svg").read_text()
    (tmp_path / "tiny.json").write_text(TINY_GENOTYPE)
    done = train_here(
        "--mode=draw", f"--genotype={tmp_path / 'tiny.json'}", f"--output={tmp_path / 'b.png'}"
    )
    assert done.code == 0 and (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    draw.draw(genotype.load("published"), tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_bytes() == (tmp_path / "new" / "a.svg").read_bytes()
    assert {name for name, modes in USED.items() if "draw" in modes} == {
        *("mode", "genotype", "output")
    }


@pytest.mark.parametrize(
    ("flags", "saying"),
    [
        (["--genotype=published"], "--output is needed by --mode=draw"),
        (["--output=a.svg"], "--genotype is needed by --mode=draw"),
        (["--genotype=nowhere", "--output=a.svg"], "'nowhere'"),
        (["--genotype=published", "--output=a.pdf"], "ends in .svg or .png"),
        (["--genotype=published", "--output=a.svg", "--model_dir=a"], "is not used by --mode=draw"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, flags, saying):
    monkeypatch.chdir(tmp_path)
    done = train_here("--mode=draw", *flags)
    assert done.code == 2 and saying in done.error and list(tmp_path.iterdir()) == []


def test_the_genotype_is_not_drawn_over(tmp_path):
    (tmp_path / "tiny.svg").write_text(TINY_GENOTYPE)
    path = tmp_path / "tiny.svg"
    done = train_here("--mode=draw", f"--genotype={path}", f"--output={path}")
    assert done.code == 2 and "is a file that is read" in done.error
    assert path.read_text() == TINY_GENOTYPE
