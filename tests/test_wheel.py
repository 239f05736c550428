"""The wheel, installed where the checkout is not: its commands work, and it is all there."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.command import ROOT, TINY_GENOTYPE, TINY_NETWORK
from tests.miniature import write_cityscapes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the files that git knows, so that no build folder appears here."""
    root = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            target = root / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", root, root / "source"], check=True, timeout=300
    )
    return next(root.glob("*.whl"))


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory):
    """The folder of the console scripts, in an environment of its own."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    # Its dependencies are those that are installed here; the checkout, which is installed here by
    # a file that is read in no folder but Python's own, is not.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = home / "bin" / "python"
    install = ["--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=120)
    found = subprocess.run(
        [python, "-c", "import official; print(official.__path__[0])"],
        capture_output=True, check=True, text=True, cwd=home,
    ).stdout  # fmt: skip
    assert found.startswith(str(home)), found
    return home / "bin"


def test_everything_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("official", "auto_deeplab", "tfrecords_tools"):
        files = [path for path in (ROOT / package).rglob("*") if path.is_file()]
        wanted = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
        assert wanted <= names and f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_its_commands_go_the_road(commands, tmp_path):
    def run(name, *arguments):
        done = subprocess.run(
            [commands / name, *map(str, arguments)],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    write_cityscapes(tmp_path / "source")
    (tmp_path / "genotype.json").write_text(TINY_GENOTYPE)
    run(
        *("auto-deeplab-convert", "--dataset=cityscapes", "--source_dir=source"),
        "--output_dir=data",
    )
    run("auto-deeplab-check", "--data_dir=data")
    run("auto-deeplab-browse", "--data_dir=data", "--output=seen.png", "--images=1")
    table = run("auto-deeplab", "--mode=profile", "--genotype=published", "--crop_size=33")
    assert '"params_millions"' in table
    run(
        *("auto-deeplab", "--mode=train", "--data_dir=data", "--model_dir=run"),
        *("--genotype=genotype.json", *TINY_NETWORK, "--train_steps=1", "--batch_norm_decay=0.1"),
    )
    run("auto-deeplab", "--mode=export", "--model_dir=run", "--export_format=saved_model,onnx")
    for name in ("seen.png", "run/export/1/saved_model.pb", "run/export/onnx/1/model.onnx"):
        assert (tmp_path / name).stat().st_size > 500


def test_another_official_is_said_in_a_line(tmp_path):
    """As tf-models-official has one, found first."""
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import auto_deeplab"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "most likely that of tf-models-official: the two cannot share an environment" in last
