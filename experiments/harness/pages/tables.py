"""Rows as text, Markdown and plain JSON values."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

Row = dict[str, Any]
_CODE = re.compile(r"[a-z0-9]+(_[a-z0-9]+)+")
# Columns that are shown though all rows agree in them.
_ALWAYS = ("test_accuracy", "robust_accuracy")
# Columns whose values a person types as they are.
_TYPED = ("dataset",)


def in_words(name: str) -> str:
    """A name of the code's as a person reads it: without underscores, where it is nothing but such a name."""
    return name.replace("_", " ") if _CODE.fullmatch(name) else name


def text(rows: Sequence[Row], columns: Sequence[str] | Mapping[str, str], style: str = "plain") -> str:
    """Some columns of the rows as an aligned table; `style` is one of tabulate's, for instance `github`."""
    headings = [*headings_of(columns, rows).values()]
    cells = [[cell_of(row, name) for name in columns] for row in rows]
    numeric = ["right" if any(isinstance(row.get(name), int | float) for row in rows) else "left" for name in columns]
    return tabulate(cells, headings, tablefmt=style, colalign=numeric if cells else None, disable_numparse=True)


def fitting(rows: Sequence[Row], columns: Mapping[str, str], width: int, most: int = 6) -> str:
    """A table's first columns, at most so many, as far as they fit a width; those in which all rows agree are left out.

    The first column is always there, and so are accuracies.
    """

    def tells(name: str) -> bool:
        return name in _ALWAYS or len(rows) < 2 or len({cell_of(row, name) for row in rows}) > 1

    telling = [name for name in columns if tells(name)]
    chosen, *rest = dict.fromkeys([next(iter(columns)), *telling])
    shown = [chosen]
    for name in rest[: most - 1]:
        lines = text(rows, {one: columns[one] for one in [*shown, name]}).splitlines()
        shown += [name] if max(map(len, lines)) <= width else []
    return text(rows, {one: columns[one] for one in shown})


def headings_of(columns: Sequence[str] | Mapping[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """Headings by column: those given, or the columns' names in words; they say where 95% intervals stand beside."""
    named = columns if isinstance(columns, Mapping) else {name: in_words(name) for name in columns}
    bounded = {name for name in named if any(has_interval(row, name) for row in rows)}
    return {name: f"{heading} [95%]" if name in bounded else heading for name, heading in named.items()}


def with_interval(name: str, found: Sequence[Any]) -> Row:
    """A column of a value and its bounds, as a row has it: `NAME`, `NAME_low`, `NAME_high`."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, found), strict=True))


def interval_of(row: Row, name: str) -> tuple[float, float, float]:
    """A column's value and its bounds."""
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def has_interval(row: Row, name: str) -> bool:
    """Whether a row has the bounds of a column's 95% interval as finite numbers."""
    bounds = (row.get(f"{name}{end}") for end in ("_low", "_high"))
    return all(bound is not None and math.isfinite(bound) for bound in bounds)


def cell_of(row: Row, name: str) -> str:
    """A row's value of a column as a person reads it, with its 95% interval where it has one: `0.42 [0.35, 0.49]`."""
    value = cell(row.get(name), name)
    return value + written_bounds(row, name, cell) if has_interval(row, name) else value


def written_bounds(row: Row, name: str, written: Callable[[float], str]) -> str:
    """The bounds of a column's interval, as they stand behind its value."""
    return f" [{written(row[f'{name}_low'])}, {written(row[f'{name}_high'])}]"


def cell(value: Any, column: str = "") -> str:
    """One value as a person reads it."""
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float | np.floating):
        return f"{value:.3f}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(one, column) for one in value)
    return str(value) if column in _TYPED else in_words(str(value))


def plain(value: Any) -> Any:
    """A JSON value: Python's own numbers, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
