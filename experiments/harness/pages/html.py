"""One self-contained HTML page out of paragraphs, figures and tables; its looks are in `page.html.jinja`.

The page fetches nothing, opens from a file, fits a phone and paper, light and dark, and sorts a table by the column
clicked on.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe

from experiments.harness.pages.tables import Row, cell, has_interval, headings_of, written_bounds

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("experiments.harness.pages", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
# Columns of a table that are shown at first.
_TEMPLATES.globals["shown"] = 8


class Figure(NamedTuple):
    """An SVG image, and what to look for in it."""

    svg: bytes
    caption: str


class Table(NamedTuple):
    """Some columns of rows, by name or with a heading for each name.

    `marks` gives cells of some text a class, `good`, `bad` or `open`; `glossary` says what columns are, by name.
    """

    caption: str
    rows: Sequence[Row]
    columns: Sequence[str] | Mapping[str, str]
    marks: Mapping[str, str] = {}
    glossary: Mapping[str, str] = {}


class Fold(NamedTuple):
    """A line, with a verdict and the class of its mark, and a table that is folded beneath it."""

    line: str
    verdict: str
    mark: str
    table: Table


class Code(NamedTuple):
    """Text to copy, such as a command; folded away under `summary` where there is one."""

    text: str
    summary: str = ""


class Link(NamedTuple):
    """A line that leads to another page, and what that is about."""

    target: str
    text: str
    about: str


class Written(NamedTuple):
    """Something that is HTML already, such as a notebook, from a source that is trusted."""

    markup: str


class Section(NamedTuple):
    """A headline, if there is any, and what is below it; a string is a paragraph."""

    title: str
    parts: Sequence["Part"]


Part = str | Figure | Table | Fold | Code | Link | Written


def document(title: str, sections: Sequence[Section]) -> str:
    """The whole page, UTF-8."""
    shown = [{"title": section.title, "parts": [_part(part) for part in section.parts]} for section in sections]
    return _TEMPLATES.get_template("page.html.jinja").render(title=title, sections=shown)


def _part(part: Part) -> Any:
    match part:
        case Figure(svg, caption):
            return {"type": "figure", "data": base64.b64encode(svg).decode(), "caption": caption}
        case Code(text, summary):
            return {"type": "code", "text": text, "summary": summary}
        case Written(markup):
            return {"type": "written", "markup": markupsafe.Markup(markup)}
        case Link(target, text, about):
            return {"type": "link", "target": target, "text": text, "about": about}
        case Fold(line, verdict, mark, table):
            return {"type": "fold", "line": line, "verdict": verdict, "mark": mark, "table": _part(table)}
        case Table(caption, rows, columns, marks, glossary):
            headings = headings_of(columns, rows)
            lines = [[_cell(row, name, marks) for name in headings] for row in rows]
            said = {heading: glossary[name] for name, heading in headings.items() if name in glossary}
            shown = {"headings": list(headings.values()), "lines": lines, "glossary": said}
            return {"type": "table", "caption": caption, **shown}
        case _:
            return part


def _cell(row: Row, column: str, marks: Mapping[str, str]) -> dict[str, Any]:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = cell(value, column)
        return {"text": text, "mark": marks.get(text), "value": None}
    text = _number(value) + (written_bounds(row, column, _number) if has_interval(row, column) else "")
    return {"text": text, "mark": "number", "value": value}


def _number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
