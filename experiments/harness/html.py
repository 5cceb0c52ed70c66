"""One self-contained HTML page out of paragraphs, figures and tables; its looks are in `page.html.jinja`.

The page fetches nothing, opens from a file, fits a phone and paper, and sorts a table by the column clicked on.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from experiments.harness.tables import Row

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("experiments.harness", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


class Figure(NamedTuple):
    """A PNG image, and what to look for in it."""

    png: bytes
    caption: str


class Table(NamedTuple):
    """Some columns of rows, by name or with a heading for each name; `marks` gives cells of some text a class.

    The classes are `good`, `bad` and `open`.
    """

    caption: str
    rows: Sequence[Row]
    columns: Sequence[str] | Mapping[str, str]
    marks: Mapping[str, str] = {}


class Code(NamedTuple):
    """Text to copy, such as a command; folded away under `summary` where there is one."""

    text: str
    summary: str = ""


class Section(NamedTuple):
    """A headline and what is below it; a string is a paragraph."""

    title: str
    parts: Sequence[str | Figure | Table | Code]


def document(title: str, sections: Sequence[Section]) -> str:
    """The whole page, UTF-8."""
    shown = [{"title": section.title, "parts": [_part(part) for part in section.parts]} for section in sections]
    return _TEMPLATES.get_template("page.html.jinja").render(title=title, sections=shown)


def _part(part: str | Figure | Table | Code) -> Any:
    match part:
        case Figure(png, caption):
            return {"type": "figure", "data": base64.b64encode(png).decode(), "caption": caption}
        case Code(text, summary):
            return {"type": "code", "text": text, "summary": summary}
        case Table(caption, rows, columns, marks):
            headings = columns if isinstance(columns, Mapping) else {name: name for name in columns}
            lines = [[_cell(row.get(name), marks) for name in headings] for row in rows]
            return {"type": "table", "caption": caption, "headings": list(headings.values()), "lines": lines}
        case _:
            return part


def _cell(value: Any, marks: Mapping[str, str]) -> dict[str, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return {"text": text, "mark": marks.get(text), "value": None}
    text = "-" if not math.isfinite(value) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
    return {"text": text, "mark": "number", "value": value}
