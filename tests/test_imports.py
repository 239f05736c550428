"""The direction of the imports: tfrecords_tools -> official <- auto_deeplab, and never upward.

Inside auto_deeplab they point down the floors of docs/architecture.md.
"""

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

FLOORS = (
    {"train", "quickstart", "import_tf1", "console"},  # commands
    {"modes"},
    {"runs"},
    {"report"},
    {"budget"},
    {"search", "network"},
    {"space"},
)
"""What is in auto_deeplab, from the top: each may import what is further down, and itself."""


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


def imported_modules(source: str, package: str) -> set[str]:
    """What a module imports directly from a package: "b" for package.b, package.b.c, ..."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
    return found


def test_the_floors_hold_all_of_auto_deeplab():
    assert imported_modules("import a.b.c\nfrom a import d, e\nfrom a.f.g import h", "a") == {
        *("b", "d", "e", "f")
    }
    there = {path.relative_to(ROOT / "auto_deeplab").parts[0] for path in MODULES_OF_METHOD}
    assert {name.removesuffix(".py") for name in there} - {"__init__"} == set().union(*FLOORS)


MODULES_OF_METHOD = [path for path in MODULES if path.is_relative_to(ROOT / "auto_deeplab")]


@pytest.mark.parametrize(
    "path", MODULES_OF_METHOD, ids=lambda path: str(path.relative_to(ROOT / "auto_deeplab"))
)
def test_no_import_points_to_a_higher_floor_or_sideways(path):
    own = path.relative_to(ROOT / "auto_deeplab").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    (floor,) = (number for number, names in enumerate(FLOORS) if own in names)
    below = set().union(*FLOORS[floor + 1 :])
    assert imported_modules(path.read_text(), "auto_deeplab") <= {own, *below}


@pytest.mark.parametrize(
    "module",
    [
        *(path.relative_to(ROOT) for path in (ROOT / "auto_deeplab" / "space").glob("*.py")),
        *(
            Path("auto_deeplab/report") / f"{name}.py"
            for name in ("charts", "figures", "page", "pages")
        ),
        Path("auto_deeplab/runs/tf1_names.py"),
        Path("auto_deeplab/modes/flag_definitions.py"),
    ],
    ids=str,
)
def test_what_is_plain_data_loads_no_tensorflow(module):
    name = ".".join(module.with_suffix("").parts).removesuffix(".__init__")
    code = f"import sys, {name}; print(*{{'tensorflow', 'keras'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_importing_the_package_does_not_load_tensorflow():
    # `auto_deeplab.load` and `build` load it when they are called.
    code = "import sys, auto_deeplab; print(*{'tensorflow', 'keras', 'absl'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_no_module_bears_a_name_of_the_standard_library():
    # `python auto_deeplab/train.py` begins with that folder first on sys.path.
    names = {path.stem for path in MODULES if path.parent.parent == ROOT} | {"tests"}
    assert not names & sys.stdlib_module_names


def reads_flags(tree):
    """Whether FLAGS or sys.argv is named."""
    return any(
        isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) in ("FLAGS", "argv")
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
    } == {"command_line.py"}


RUNS_WHAT_IT_READS = {
    *("eval", "exec", "compile", "__import__", "pickle", "marshal", "shelve", "dill", "joblib"),
    *("cPickle", "yaml", "unsafe_load", "os.system", "os.popen", "subprocess.getoutput"),
    "keras.config.enable_unsafe_deserialization",
    *("allow_pickle=True", "safe_mode=False", "shell=True"),
}


def unsafe_names(source: str) -> set[str]:
    """What a module calls, imports or passes that would run what it reads."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.keyword):
            found.add(f"{node.arg}={ast.unparse(node.value)}")
    return found & RUNS_WHAT_IT_READS


def test_nothing_that_is_read_is_run():
    """No pickle, no eval: a data file is data. (NumPy and Keras load neither unless told to.)"""
    source = "import pickle\nfrom os import system\nnp.load(x, allow_pickle=True)\neval(x)\n"
    assert unsafe_names(source) == {"pickle", "os.system", "allow_pickle=True", "eval"}
    assert {path.name: names for path in MODULES if (names := unsafe_names(path.read_text()))} == {}


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


def test_load_and_build_do_not_follow_keras_to_another_backend():
    # No other backend is installed here: a stand-in for a Keras that runs on one.
    code = """
import sys, types
stand_in = types.ModuleType("keras")
stand_in.config = types.SimpleNamespace(backend=lambda: "jax")
sys.modules["keras"] = stand_in
import auto_deeplab
from official.errors import RunError
for start in (lambda: auto_deeplab.load("run"), lambda: auto_deeplab.build("published", 2)):
    try:
        start()
    except RunError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all("backend jax" in line and "KERAS_BACKEND=tensorflow" in line for line in lines)


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
