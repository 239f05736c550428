"""Links of documents lead somewhere; what documents, docstrings and comments cite exists."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests import citations, test_imports
from tests.command import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)

COMING: set[str] = set()
"""Cited already, and not there yet."""


def without_code(text: str) -> str:
    """The text without what is shown as code: no heading or link is there."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors that a Markdown file's headings get."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.M)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


def links(path: Path) -> list[str]:
    text = without_code(path.read_text(encoding="utf-8"))
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_there_are_documents_with_links_and_anchors():
    assert ROOT / "README.md" in DOCUMENTS and len(DOCUMENTS) > 10
    found = [link for path in DOCUMENTS for link in links(path)]
    assert len(found) > 40 and any("#" in link for link in found)


@each_document
def test_links_lead_somewhere(path):
    for link in links(path):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_document_is_reached_from_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        path = todo.pop()
        if path in reached:
            continue
        reached.add(path)
        files = [(path.parent / link.partition("#")[0]).resolve() for link in links(path)]
        todo += [file for file in files if file.suffix == ".md"]
    assert set(DOCUMENTS) <= reached


def test_readme_is_read_in_three_minutes():
    text = without_code((ROOT / "README.md").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if not line.startswith(("|", "!"))]
    assert len(" ".join(lines).split()) < 600


def test_the_first_picture_is_small_enough_to_come_at_once():
    assert (ROOT / "docs" / "quickstart.png").stat().st_size < 300_000


def read(path: Path) -> str:
    """A document's text; of the changelog, which may name what is gone, the newest entries."""
    text = path.read_text(encoding="utf-8")
    return "\n## ".join(text.split("\n## ")[:2]) if path.name == "CHANGELOG.md" else text


def code_in(text: str) -> str:
    blocks, spans = citations.code_of(text)
    return "\n".join([*blocks, *spans])


def files_not_there(text: str, folder: Path) -> set[str]:
    return {name for name in citations.cited_files(text) if not citations.find_file(name, folder)}


@each_document
def test_cited_files_exist(path):
    assert files_not_there(code_in(read(path)), path.parent) - COMING == set()


@each_document
def test_cited_names_are_defined(path):
    text = read(path)
    # Short names, such as `decoding.decode_path`, only where they are marked as code.
    cited = citations.cited_names(code_in(text)) | citations.cited_names(text, short=False)
    wrong = {name for name in cited if not citations.find_name(name)}
    wrong |= {*citations.wrong_identifiers(citations.code_of(text)[1])}
    assert wrong - COMING == set()
    for file, name in citations.names_beside_files(text):
        if not {file, name} & COMING:
            (module,) = citations.find_file(file, path.parent)
            assert citations.has_name(module, name.split(".")), (file, name)


@each_document
def test_commands_and_flags_exist(path):
    text = read(path)
    wrong = {
        command: citations.wrong_in_command(command) for command in citations.commands_in(text)
    }
    assert {command: what for command, what in wrong.items() if what} == {}
    assert citations.wrong_flags(text) - COMING == set()


@each_document
def test_python_takes_what_is_there(path):
    for source in citations.python_in(read(path)):
        assert citations.wrong_in_python(source) == []


@pytest.mark.parametrize("package", [*citations.PACKAGES, "docs"])
def test_docstrings_and_comments_cite_what_exists(package):
    wrong = []
    for path in citations.files():
        if path.relative_to(ROOT).parts[0] == package and path.suffix in (".py", ".cfg"):
            is_python = path.suffix == ".py"
            text = citations.words_in_source(path) if is_python else path.read_text("utf-8")
            missing = files_not_there(text, path.parent)
            missing |= {n for n in citations.cited_names(text) if not citations.find_name(n)}
            wrong += [f"{path.relative_to(ROOT)}: {name}" for name in missing - COMING]
    assert not wrong, "not there:\n" + "\n".join(wrong)


def test_what_was_to_come_is_taken_off_the_list():
    # Then the checks above look at it.
    come = [name for name in COMING if Path(name).suffix == ".py" and citations.find_file(name)]
    come += [name for name in COMING if name in citations.definitions()]
    assert come == [], "is there: take it out of COMING"


def test_much_is_cited():
    texts = [read(path) for path in DOCUMENTS]
    assert sum(len(citations.cited_files(code_in(text))) for text in texts) > 150
    assert sum(len(citations.cited_names(code_in(text))) for text in texts) > 15
    assert sum(len([*citations.names_beside_files(text)]) for text in texts) > 25
    assert sum(len(citations.commands_in(text)) for text in texts) > 60
    assert sum(len(citations.python_in(text)) for text in texts) > 1


def test_what_is_not_there_is_seen():
    text = """
    python -m tfrecords_tools.convert --dataset=folder --colour=red
    python -m tfrecords_tools.convort --dataset=folder
    python benchmarks/nothing.py && make tea  # make test
    make test
    python auto_deeplab/import_tf1.py --nocheckpoint

Files: `docs/nowhere.md`, `schedules.py`, `space/{genotype,nothing}.py`, `configs/train_*_s.cfg`,
`configs/x_*.cfg`, `figures/a.png`. `schedules.py`: `cosine`, `sine`; `nodes` in
`search_space.py`; `decoding.decode_path`, `decoding.gone`, `official.records.Description.split`,
`official.records.Description.gone`, `Genotype.cell`, `Genotype.gone`, `_gone`, `cell.leave`.
"""
    assert files_not_there(code_in(text), ROOT) == {
        *("docs/nowhere.md", "space/nothing.py", "configs/x_*.cfg", "benchmarks/nothing.py")
    }
    beside = {*citations.names_beside_files(text)}
    assert beside == {
        *(("schedules.py", "cosine"), ("schedules.py", "sine")),
        ("search_space.py", "nodes"),
    }
    (schedules,) = citations.find_file("schedules.py")
    assert citations.has_name(schedules, ["cosine"])
    assert not citations.has_name(schedules, ["sine"])
    names = citations.cited_names(code_in(text))
    assert {name for name in names if not citations.find_name(name)} == {
        *("decoding.gone", "official.records.Description.gone", "tfrecords_tools.convort")
    }
    spans = citations.code_of(text)[1]
    assert citations.wrong_identifiers(spans) == ["Genotype.gone", "_gone", "cell.leave"]
    wrong = [citations.wrong_in_command(command) for command in citations.commands_in(text)]
    assert wrong == [
        *("flags {'colour'}", "tfrecords_tools/convort.py is not there"),
        *("benchmarks/nothing.py is not there", "target {'tea'}", None, None),
    ]
    assert citations.wrong_flags(text) == {"colour"}
    source = "from auto_deeplab.space import genotype as g, gone\ng.load(g.lead)\nimport numpy.gone"
    assert citations.wrong_in_python(source) == [
        *("auto_deeplab.space.gone", "auto_deeplab.space.genotype.lead")
    ]


def test_the_plan_of_the_house_is_that_of_the_imports():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \|", text.split("\n## ")[1], re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == [*map(set, test_imports.FLOORS)]
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    drawn = [", ".join(name for name, _ in floor) for floor in draw.FLOORS]
    names = [set(re.sub(r"/|\.py", "", floor).split(", ")) for floor in drawn]
    assert names == [*map(set, test_imports.FLOORS)]
