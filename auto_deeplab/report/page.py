"""Pieces of a page for people: one HTML file that needs no other file and asks no server.

Every function returns HTML; whatever text it is given is escaped. Pictures become a part of the
page. The look is in templates/base.html, for light and dark screens, wide and narrow ones.
"""

import base64
import html
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from official.files import write_atomically

LONGEST_LINE = 92  # of a command, in characters
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).resolve().with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write(path: str | os.PathLike[str], title: str, *parts: str) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the file.
        title: of the window; text.
        parts: HTML, what this module's functions return.

    Raises:
        RunError: the file cannot be written.
    """
    template = TEMPLATES.get_template("base.html")
    write_atomically(path, template.render(title=title, body=Markup("\n".join(parts))))


def element(tag: str, text: str, style: str = "") -> str:
    """A tag with text in it; `style` is one of the classes of base.html."""
    kind = f' class="{html.escape(style)}"' if style else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"


def section(heading: str, *parts: str, step: int | None = None, took: str = "") -> str:
    """A card with a heading; `step` is its number, `took` stands on the right."""
    number = element("span", str(step), "step") if step is not None else ""
    right = element("div", took, "took") if took else ""
    head = f"{right}<h2>{number}{html.escape(heading)}</h2>"
    return "\n".join(["<section>", head, *parts, "</section>"])


def numbers(values: Iterable[tuple[str, str]]) -> str:
    """A row of (number, what it is), large."""
    boxes = [
        f"<div>{element('strong', number)}{element('span', what)}</div>" for number, what in values
    ]
    return f'<div class="numbers">{"".join(boxes)}</div>'


def picture(png: bytes, alt: str, caption: str = "", *, chart: bool = False) -> str:
    """A PNG; a `chart` keeps its white ground on a dark screen."""
    data = base64.b64encode(png).decode()
    below = element("figcaption", caption) if caption else ""
    kind = ' class="chart"' if chart else ""
    image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}"/>'
    return f"<figure{kind}>{image}{below}</figure>"


def row(pictures: Sequence[str]) -> str:
    """Two or three pictures side by side."""
    kind = "row two" if len(pictures) == 2 else "row"
    return f'<div class="{kind}">{"".join(pictures)}</div>'


def code(text: str) -> str:
    """What one types; a click selects all of it."""
    return element("pre", text)


def commands(*lines: str) -> str:
    """Commands, one a line; a long one is folded so that a shell still takes it as one."""
    return code("\n".join(map(_fold, lines)))


def _fold(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    rows = [""]
    for word in map(shlex.quote, shlex.split(line)):
        if rows[-1] and len(rows[-1]) + len(word) > LONGEST_LINE - 3:
            rows.append("   ")
        rows[-1] += f" {word}" if rows[-1] else word
    return " \\\n".join(rows)


def details(heading: str, *parts: str) -> str:
    """Parts that stay hidden until the heading is clicked."""
    return f"<details>{element('summary', heading)}{''.join(parts)}</details>"


def swatch(colour: Sequence[int]) -> str:
    """A small square of a colour (red, green, blue), each in 0..255."""
    red, green, blue = (int(value) for value in colour)
    return f'<span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>'


def classes(names: Iterable[str], palette: Iterable[Sequence[int]]) -> str:
    """Which colour is which class."""
    entries = [
        f"<span>{swatch(colour)}{html.escape(name)}</span>"
        for name, colour in zip(names, palette, strict=True)
    ]
    return f'<div class="classes">{"".join(entries)}</div>'


def bar(share: float) -> str:
    """A bar whose length is a share, 0..1, of the room it has."""
    return f'<span class="bar" style="width: {100 * min(max(share, 0), 1):.1f}%"></span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] = ()) -> str:
    """A table of HTML cells; text that looks like a number stands on the right.

    Args:
        head: the columns' names; text.
        rows: of HTML, as many cells as `head` has.
        total: one more row, in bold.
    """

    def cell(value: str) -> str:
        if value.startswith('<span class="bar"'):
            return f'<td class="wide">{value}</td>'
        return f'<td class="number">{value}</td>' if value[:1].isdigit() else f"<td>{value}</td>"

    titles = "".join(element("th", name) for name in head)
    lines = [f"<tr>{titles}</tr>"]
    lines += [f"<tr>{''.join(map(cell, cells))}</tr>" for cells in rows]
    if total:
        lines.append(f'<tr class="total">{"".join(map(cell, total))}</tr>')
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'
