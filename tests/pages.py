"""What a page must be, for tests of those who make one."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PIL import Image


def check_page(path: Path) -> ElementTree.Element:
    """Checks that the page is well formed and needs nothing but itself; returns its root."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n")
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    for element in root.iter():
        assert element.tag not in ("script", "link", "iframe", "object")
        for name, value in element.attrib.items():
            if name in ("src", "href", "srcset", "data", "poster"):
                assert value.startswith(("data:image/png;base64,", "#")), value
    assert not re.search(r"url\(|@import", text)
    return root


def pictures(root: ElementTree.Element) -> dict[str, list[Image.Image]]:
    """Every picture of a page by what stands for it where it cannot be seen; all can be decoded."""
    found: dict[str, list[Image.Image]] = {}
    for element in root.findall(".//img"):
        data = base64.b64decode(element.attrib["src"].partition(",")[2])
        picture = Image.open(io.BytesIO(data))
        picture.load()
        found.setdefault(element.attrib["alt"], []).append(picture)
    return found
