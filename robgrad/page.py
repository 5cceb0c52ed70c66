"""One self-contained HTML page out of paragraphs, figures and tables.

The page fetches nothing, opens from a file, fits a phone and paper, and sorts a table by the column clicked on.
"""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from robgrad.report import Row

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; }
caption { text-align: left; padding: .3rem 0; color: #444; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { background: #f3f3f3; } th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #06c; } th button::after { content: " \\2195"; color: #999; }
td.good { background: #d9f2d9; } td.bad { background: #f8d7d7; } td.open { background: #f3f0d7; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .9rem; }
pre { background: #f6f6f6; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
@media print {
  body { max-width: none; font-size: 10pt; padding: 0; } .wide { overflow: visible; }
  table { font-size: 7pt; } th, td { padding: .1rem .25rem; } th button::after { content: ""; }
  figure, tr { break-inside: avoid; } td { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const cell = button.parentNode, body = cell.closest("table").tBodies[0], at = cell.cellIndex;
  const down = cell.getAttribute("aria-sort") === "ascending";
  for (const other of cell.parentNode.cells) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[at].dataset.value ?? row.cells[at].textContent;
  const both = (a, b) => a !== "" && b !== "" && !isNaN(a) && !isNaN(b);
  const order = (a, b) => both(a, b) ? a - b : a.localeCompare(b);
  const rows = [...body.rows].sort((a, b) => order(value(a), value(b)));
  body.append(...(down ? rows.reverse() : rows));
});
"""


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
    body = "".join(
        f"<h2>{html.escape(section.title)}</h2>\n{''.join(map(_part, section.parts))}" for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Without an icon of its own a browser would ask a server for one.
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}<script>{_SCRIPT}</script></body></html>\n"
    )


def _part(part: str | Figure | Table | Code) -> str:
    match part:
        case Figure(png, caption):
            text, data = html.escape(caption, quote=True), base64.b64encode(png).decode()
            source = f"data:image/png;base64,{data}"
            return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>\n'
        case Code(text, summary):
            code = f"<pre>{html.escape(text)}</pre>\n"
            return f"<details><summary>{html.escape(summary)}</summary>{code}</details>\n" if summary else code
        case Table():
            return _table(part)
        case _:
            return f"<p>{html.escape(part)}</p>\n"


def _table(table: Table) -> str:
    headings = table.columns if isinstance(table.columns, Mapping) else {name: name for name in table.columns}
    head = "".join(f'<th scope="col"><button>{html.escape(text)}</button></th>' for text in headings.values())
    lines = ("".join(_cell(row.get(name), table.marks) for name in headings) for row in table.rows)
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    caption = f"<caption>{html.escape(table.caption)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _cell(value, marks: Mapping[str, str]) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        mark = f' class="{marks[text]}"' if text in marks else ""
        return f"<td{mark}>{html.escape(text)}</td>"
    text = "-" if not math.isfinite(value) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
    return f'<td class="number" data-value="{value}">{text}</td>'
