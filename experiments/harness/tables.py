"""Rows as text, Markdown and plain JSON values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

Row = dict[str, Any]


def text(rows: Sequence[Row], columns: Sequence[str] | Mapping[str, str], style: str = "plain") -> str:
    """Some columns of the rows as an aligned table; `style` is one of tabulate's, for instance `github`."""
    headings = list(columns.values()) if isinstance(columns, Mapping) else list(columns)
    cells = [[cell(row.get(name)) for name in columns] for row in rows]
    numeric = ["right" if any(isinstance(row.get(name), int | float) for row in rows) else "left" for name in columns]
    return tabulate(cells, headings, tablefmt=style, colalign=numeric if cells else None, disable_numparse=True)


def cell(value: Any) -> str:
    """One value as a person reads it."""
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float | np.floating):
        return f"{value:.3f}"
    return ", ".join(map(cell, value)) if isinstance(value, list | tuple) else str(value)


def plain(value: Any) -> Any:
    """A JSON value: Python's own numbers, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
