import shlex
import xml.etree.ElementTree as ElementTree

import pytest

from auto_deeplab.report import page
from tests.pages import check_page

HOSTILE = "<script>alert('&\"')</script>"


def test_a_page_is_well_formed_and_text_stays_text(tmp_path):
    parts = [
        page.element("p", HOSTILE),
        page.section(HOSTILE, page.code(HOSTILE), step=1, took=HOSTILE),
        page.numbers([(HOSTILE, HOSTILE)]),
        page.row([page.picture(b"png", HOSTILE, HOSTILE)] * 2),
        page.classes([HOSTILE], [(1, 2, 3)]),
        page.details(HOSTILE, page.table([HOSTILE, ""], [["a", page.bar(0.5)]], total=["b", "1"])),
    ]
    page.write(tmp_path / "page.html", HOSTILE, *parts)
    root = check_page(tmp_path / "page.html")
    assert not root.findall(".//script")
    texts = [text for text in root.itertext() if text.strip()]
    # Title, paragraph; heading, code, time; 2 of the numbers; 2 captions; class; summary, head.
    assert texts.count(HOSTILE) == 12
    assert len(root.findall(".//img[@alt]")) == 2


@pytest.mark.parametrize("width", [10, 60, 300])
def test_a_folded_command_is_the_same_command(width):
    words = ["python", "a.py", *(f"--flag_{n}=it's {'x' * (n * width % 70)}" for n in range(9))]
    shown = ElementTree.fromstring(page.commands(shlex.join(words))).text
    assert shlex.split(shown.replace("\\\n", "")) == words
    assert len(shown.splitlines()) > 2
    assert all(line.endswith(" \\") for line in shown.splitlines()[:-1])


def test_bars_stay_in_their_room():
    assert [page.bar(share).count("100.0%") for share in (0.5, 1.0, 1.2)] == [0, 1, 1]
    assert "width: 0.0%" in page.bar(-1)
