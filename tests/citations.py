"""What documents, docstrings and comments cite of this repository, and whether it is there.

Names are looked up in the source; nothing that loads TensorFlow is imported.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from auto_deeplab.modes.flag_definitions import USED

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("auto_deeplab", "official", "tfrecords_tools", "benchmarks", "tests")
FOLDERS = (*PACKAGES, "docs", "examples")
SOURCE = r"py|md|cfg|svg|html|toml|ipynb"  # files of these kinds that are cited are ours
DATA = r"png|json|jsonl|csv|txt"  # of these only where a folder of the repository is named
FOREIGN_FILES = {
    # what a run writes, or a user
    *("flags.cfg", "mine.cfg", "index.html", "report.html"),
    # other projects: the TF1 release, Cityscapes' own scripts
    *("build_data.py", "build_voc2012_data.py", "build_cityscapes_data.py"),
    *("labels.py", "evalPixelLevelSemanticLabeling.py"),
}
"""Names that look like the repository's files and are none."""
FOREIGN_NAMES = {
    *("DepthwiseConv2dNative", "ScaleAndTranslate"),  # TensorFlow's
    *("DownloadConfig", "GeneratorBasedBuilder", "_generate_examples"),  # TensorFlow Datasets'
}
FOREIGN_OBJECTS = {"tf", "keras", "np", "beam", "model"}
FOREIGN_FLAGS = {
    *("help", "flagfile"),  # of every command of absl's
    *("rm", "gpus", "logdir", "all", "dir"),  # docker's, tensorboard's, saved_model_cli's
    *("aspp_with_separable_conv", "decoder_use_separable_conv"),  # the TF1 release's
}


@cache
def files() -> tuple[Path, ...]:
    """All files of the repository, without what is made from them."""
    tops = [ROOT / name for name in (*FOLDERS, ".ci")]
    found = [path for top in tops for path in top.rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return tuple(path for path in found if "__pycache__" not in path.parts)


# Files.


def expand_braces(text: str) -> list[str]:
    """`a{b,c}` is ab and ac, as in a shell."""
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        return [text]
    start, end = text[: match.start()], text[match.end() :]
    return [whole for part in match[1].split(",") for whole in expand_braces(start + part + end)]


def find_file(name: str, near: Path = ROOT) -> list[Path]:
    """The files, or the folder, that a text names.

    Args:
        name: a path from the root, from auto_deeplab/ or from the folder of the text; or as much
            of the end of a path as only one file has. * stands for anything.
        near: the folder of the text.
    """
    for base in (near, ROOT, ROOT / "auto_deeplab"):
        found = list(base.glob(name))
        if found:
            return found
    ending = re.escape(f"/{name}").replace(r"\*", "[^/]*")
    found = [path for path in files() if re.search(f"{ending}$", path.as_posix())]
    return found if len(found) == 1 or "*" in name else []


def cited_files(text: str) -> set[str]:
    """What looks like files and folders of the repository."""
    path = r"(?<![\w./{*<$-])(?:[\w.*-]|\{[\w,.]*\})(?:[\w./*-]|\{[\w,.]*\})*"
    cited = re.findall(rf"{path}\.(?:{SOURCE})\b(?![\w/])", text)
    top = rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/(?:[\w./*-]|\{{[\w,.]*\}})*"
    cited += re.findall(rf"{top}\.(?:{DATA})\b", text)
    cited += re.findall(rf"{top}(?=[`\s,:;)]|$)", text)
    names = {whole.rstrip(".") for name in cited for whole in expand_braces(name)}
    return {name for name in names if Path(name).name not in FOREIGN_FILES}


# Names.


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def defined_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Names that a module or class defines or imports, with the statement that does."""
    names: dict[str, ast.stmt] = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names[statement.name] = statement
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: statement for alias in statement.names}
        elif isinstance(statement, ast.If | ast.Try):
            names |= defined_in(statement.body)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            names |= {
                node.id: statement for node in ast.walk(statement) if isinstance(node, ast.Name)
            }
    return names


def members_of(owner: ast.ClassDef) -> set[str]:
    """The methods, fields and attributes that a class gives itself."""
    attributes = {
        node.attr
        for node in ast.walk(owner)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self"
    }
    return {*defined_in(owner.body), *attributes}


def has_name(path: Path, names: list[str]) -> bool:
    """Whether a module defines names[0] and, where that is a class, this has names[1]."""
    found = defined_in(parse(path).body)
    owner = found.get(names[0])
    if len(names) > 1 and isinstance(owner, ast.ClassDef):
        # A class from elsewhere may have given it more.
        return names[1] in members_of(owner) or bool(owner.bases)
    return owner is not None


def find_name(dotted: str) -> bool:
    """Whether `package.module.name` is there, or `module.name`.

    A short name may mean an object that is called as its module: `sizes.answer` is of class Sizes.
    """
    first, *rest = dotted.split(".")
    if first in PACKAGES:
        place = ROOT / first
        while rest and (place / rest[0]).is_dir():
            place /= rest.pop(0)
        if rest and (place / f"{rest[0]}.py").is_file():
            module = place / f"{rest.pop(0)}.py"
        else:
            module = place / "__init__.py"
        return not rest or (module.is_file() and has_name(module, rest))
    classes = [
        node
        for path in modules()[first]
        for node in parse(path).body
        if isinstance(node, ast.ClassDef)
    ]
    return any(has_name(path, rest) for path in modules()[first]) or any(
        rest[0] in members_of(owner) for owner in classes
    )


@cache
def modules() -> dict[str, list[Path]]:
    """The Python files by their names."""
    named: dict[str, list[Path]] = {}
    for path in files():
        if path.suffix == ".py" and path.stem != "__init__":
            named.setdefault(path.stem, []).append(path)
    return named


def cited_names(text: str, short: bool = True) -> set[str]:
    """Dotted names that begin with a package or, if `short`, with a module's name."""
    starts = [*PACKAGES, *(modules() if short else ())]
    names = re.findall(rf"(?<![\w./@'\"-])(?:{'|'.join(starts)})(?:\.[A-Za-z_]\w*)+(?![\w/])", text)
    suffix = re.compile(rf"\.(?:{SOURCE}|{DATA}|cff|com|org|readthedocs)$")
    return {name for name in names if not suffix.search(name)}


@cache
def definitions() -> dict[str, list[ast.ClassDef | None]]:
    """Every function, class and variable of the repository; the classes as they are written."""
    found: dict[str, list[ast.ClassDef | None]] = {}
    for path in files():
        for node in ast.walk(parse(path)) if path.suffix == ".py" else ():
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, []).append(None)
            elif isinstance(node, ast.Name):
                found.setdefault(node.id, []).append(None)
    return found


def wrong_identifiers(spans: list[str]) -> list[str]:
    """Spans that are a name of Python's which nothing here has.

    Looked at are names of classes, names that begin with _, and dotted names of any kind; a word by
    itself may be anything.
    """
    wrong = []
    for span in spans:
        match = re.fullmatch(r"(\w+)(?:\.(\w+))?(?:\(.*\))?", span)
        if not match or match[1] in FOREIGN_NAMES | FOREIGN_OBJECTS:
            continue
        name, member = match.groups()
        if member and re.fullmatch(f"{SOURCE}|{DATA}|zip|tar|tgz|pb|svg", member):
            continue
        classes = [owner for owner in definitions().get(name, ()) if owner]
        if member and classes:
            wrong += [span] if not any(member in members_of(owner) for owner in classes) else []
        elif member:
            known = name in modules() or name in PACKAGES  # see cited_names
            wrong += [] if known else [span]
        elif re.match(r"_[a-z]|[A-Z]+[a-z]+[A-Z]", name):
            wrong += [span] if name not in definitions() else []
    return wrong


def names_beside_files(text: str) -> Iterator[tuple[str, str]]:
    """(file, name) of each "`losses.py`: `name`, `name`" and "`name` in `losses.py`"."""
    text = " ".join(text.split())
    listed = r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, | and )?)+)"
    for file, names in re.findall(listed, text):
        for name in re.findall(r"`([\w.]+)`", names):
            yield file, name
    for name, file in re.findall(r"`([\w.]+)` (?:in|of) `([\w/]+\.py)`", text):
        yield file, name


# Commands.


def code_of(text: str) -> tuple[list[str], list[str]]:
    """A document's blocks of code, and its spans in backticks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    .*\n?)+", rest, re.MULTILINE)
    rest = re.sub(r"^    .*$", "", rest, flags=re.MULTILINE)
    return [*fenced, *indented], re.findall(r"`([^`]+)`", rest.replace("\n", " "))


def commands_in(text: str) -> list[str]:
    """The commands that a document says to type, each on one line."""
    blocks, spans = code_of(text)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += spans
    lines = [re.sub(r" +#.*", "", line) for line in lines]
    parts = [part for line in lines for part in re.split(r"&&|\||;|=\"(?=python)", line)]
    commands = [re.sub(r"^(?:[A-Z_]+=\S+ +|\.\.\. )+", "", part.strip()) for part in parts]
    return [command for command in commands if re.match(r"(?:python3?|make)(?: |$)", command)]


def flags_of(path: Path) -> set[str]:
    """The flags that a command defines, itself or by what it imports from its package for that."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if re.match("DEFINE|define_path|add_argument", function):
                found.add(str(node.args[0].value).lstrip("-"))
        elif isinstance(node, ast.ImportFrom) and node.module:
            package, _, module = node.module.partition(".")
            names = {alias.name for alias in node.names}
            if package == path.parent.name and names & {"data_flags", "define_flags"}:
                found |= flags_of(path.with_name(f"{module or 'data_flags'}.py"))
    return found


@cache
def all_flags() -> frozenset[str]:
    """The flags of all commands here, and --no... of each."""
    commands = [path for path in files() if path.suffix == ".py"]
    commands = [path for path in commands if len(path.relative_to(ROOT).parts) == 2]
    found = {name for path in commands if path.parent.name != "tests" for name in flags_of(path)}
    return frozenset({*found, *USED, *(f"no{name}" for name in {*found, *USED})})


def wrong_flags(text: str) -> set[str]:
    """What looks like a flag and is none of this repository's commands."""
    text = re.sub(r"^#SBATCH .*", "", text, flags=re.MULTILINE)  # SLURM's own
    return {*re.findall(r"(?<![\w-])--(\w+)", text)} - all_flags() - FOREIGN_FLAGS


def make_targets() -> set[str]:
    """What can be made."""
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def wrong_in_command(command: str) -> str | None:
    """What a command names that is not there: a script, module, target or flag; None if nothing.

    Flags of train.py are left to test_flags.py, which knows its modes.
    """
    program, *words = command.split()
    if program == "make":
        missing = {word for word in words if "=" not in word} - make_targets()
        return f"target {missing}" if missing else None
    if words[:1] in (["-c"], ["-"]) or not words:
        return None
    if words[0] == "-m":
        name, given = words[1], words[2:]
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name.split(".")[0] not in PACKAGES:
            return None  # another project's, such as pytest
    else:
        path, given = ROOT / words[0], words[1:]
    if not path.is_file():
        return f"{path.relative_to(ROOT)} is not there"
    if path.name == "train.py":
        return None
    flags = {*flags_of(path), *FOREIGN_FLAGS}
    flags |= {f"no{name}" for name in flags}
    missing = {word for word in re.findall(r"--(\w+)", " ".join(given)) if word not in flags}
    return f"flags {missing}" if missing else None


def python_in(text: str) -> list[str]:
    """Python that a document shows: fenced as such, or behind `python -c`."""
    fenced = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [*fenced, *re.findall(r'python -c "([^"]*)"', text)]


def wrong_in_python(source: str) -> list[str]:
    """What code imports from the repository, or takes of what it imported, that is not there."""
    tree = ast.parse(source)
    known: dict[str, str] = {}  # local name -> dotted name
    cited = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    known = {name: dotted for name, dotted in known.items() if dotted.split(".")[0] in PACKAGES}
    cited += known.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            start = ast.unparse(node.value)
            if start in known:
                cited.append(f"{known[start]}.{node.attr}")
    return [dotted for dotted in cited if not find_name(dotted)]


def words_in_source(path: Path) -> str:
    """The docstrings and comments of a Python file."""
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for statement in node.body:
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    found.append(str(statement.value.value))
    source = io.StringIO(path.read_text(encoding="utf-8"))
    for token in tokenize.generate_tokens(source.readline):
        if token.type == tokenize.COMMENT:
            found.append(token.string)
    return "\n".join(found)
