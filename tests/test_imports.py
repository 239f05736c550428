"""The direction of the imports: tfrecords_tools -> official <- auto_deeplab, and never upward."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "official": {"official"},
    "auto_deeplab": {"auto_deeplab", "official"},
    "tfrecords_tools": {"tfrecords_tools", "official"},
}
MODULES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def imported_packages(source: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found.add(node.module.split(".")[0])
    return found


def test_the_walk_finds_imports_wherever_they_stand():
    source = "import a.b, c\nfrom d.e import f\ndef g():\n    if h:\n        import i as j\n"
    assert imported_packages(source) == {"a", "c", "d", "i"}
    assert len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_points_upward(path):
    package = path.relative_to(ROOT).parts[0]
    ours = imported_packages(path.read_text()) & {*ALLOWED, "tests"}
    assert ours <= ALLOWED[package]


def test_pure_parts_need_no_tensorflow():
    for name in ("search_space", "genotype", "decoding", "figures", "tf1_names", "page"):
        packages = imported_packages((ROOT / "auto_deeplab" / f"{name}.py").read_text())
        assert not packages & {"tensorflow", "keras"}, name


def test_importing_the_package_does_not_load_tensorflow():
    # `auto_deeplab.load` loads it when it is called.
    code = "import sys, auto_deeplab; print(*{'tensorflow', 'keras', 'absl'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_no_module_bears_a_name_of_the_standard_library():
    # `python auto_deeplab/train.py` begins with that folder first on sys.path.
    names = {path.stem for path in MODULES} | {"tests"}
    assert not names & sys.stdlib_module_names


def reads_flags(tree):
    return any(
        isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) == "FLAGS"
        for node in ast.walk(tree)
    )


def test_only_train_and_the_main_of_other_commands_read_flags():
    readers = {}
    for path in (ROOT / "auto_deeplab").rglob("*.py"):
        tree = ast.parse(path.read_text())
        if reads_flags(tree):
            readers[path.name] = {
                getattr(node, "name", "outside") for node in tree.body if reads_flags(node)
            }
    readers.pop("train.py")
    assert readers == {"import_tf1.py": {"main"}}
    # Elsewhere in `official`, only the function that runs a command parses them.
    assert {
        path.name for path in (ROOT / "official").rglob("*.py") if "FLAGS" in path.read_text()
    } == {"errors.py"}


# Starts TensorFlow as commands do, and says what came of it.
START = """
import os
from official.quiet import import_tensorflow
import_tensorflow()
import keras
print(os.environ["TF_ENABLE_ONEDNN_OPTS"], keras.config.backend(),
      keras.config.image_data_format(), keras.config.floatx())
"""


@pytest.mark.parametrize(("chosen", "used"), [({}, "1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0")])
def test_commands_turn_fast_kernels_on_and_choose_what_keras_needs(tmp_path, chosen, used):
    settings = {"backend": "jax", "image_data_format": "channels_first", "floatx": "float16"}
    (tmp_path / "keras.json").write_text(json.dumps({**settings, "epsilon": 1e-7}))
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "torch"}
    environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env={**environment, **chosen},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"{used} tensorflow channels_last float32\n")


def test_load_does_not_follow_keras_to_another_backend():
    # No other backend is installed here: a stand-in for a Keras that runs on one.
    code = """
import sys, types
stand_in = types.ModuleType("keras")
stand_in.config = types.SimpleNamespace(backend=lambda: "jax")
sys.modules["keras"] = stand_in
import auto_deeplab
from official.errors import RunError
try:
    auto_deeplab.load("run")
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "backend jax" in done.stdout and "KERAS_BACKEND=tensorflow" in done.stdout, done.stderr


def test_a_command_ends_without_taking_its_graphs_apart():
    # Objects in a cycle, as graphs are, go when the collector looks at them, or never.
    code = """
from official.quiet import import_tensorflow
import_tensorflow()
class Graph:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("taken apart")
import gc
gc.disable()  # until the end
Graph()
gc.enable()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
