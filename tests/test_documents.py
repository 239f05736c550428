"""Links of the documents lead somewhere, and README's code runs."""

import re
from pathlib import Path

import pytest

from tests.command import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
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
