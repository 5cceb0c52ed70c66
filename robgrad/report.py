"""Results as files, tables and figures; nothing here computes anything but densities and intervals."""

import csv
import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robgrad.runs import write

BANDWIDTH_FACTOR = 0.25
Row = dict[str, Any]


def write_results(
    workdir: Path,
    experiment: str,
    config: Mapping,
    environment: Mapping,
    rows: Sequence[Row],
    seconds: float,
    **tables: Sequence[Row],
) -> dict[str, Any]:
    """Writes tidy rows as `results.csv` and, last, as `results.json`, whose presence says the run has finished.

    `seconds` is what the session that finished took. Further tables go into `results.json` by name. Returns its
    contents.
    """
    rows, *others = (
        [{name: plain(value) for name, value in row.items()} for row in table] for table in (rows, *tables.values())
    )
    lines = io.StringIO()
    writer = csv.DictWriter(lines, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write(workdir / "results.csv", lines.getvalue())
    results: dict[str, Any] = {
        "experiment": experiment,
        "config": dict(config),
        "environment": dict(environment),
        "rows": rows,
    }
    results |= {"seconds": seconds} | dict(zip(tables, others, strict=True))
    text = json.dumps(results, indent=2, allow_nan=False)
    write(workdir / "results.json", text)
    return json.loads(text)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as one `.npz` file, what tables and figures are made of."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write(path, file.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Reads what `write_arrays` wrote; None where there is no such file, or none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return None


def interval(values: np.ndarray, statistic: Callable[[np.ndarray], Any], resamples: int = 1000) -> tuple:
    """The 95% percentile bootstrap interval of a statistic of independent values (Efron, 1979); NaNs below two.

    Values are the rows of `values`, for instance what several networks do to one image, so that differences of
    networks are paired; the bounds have the shape of the statistic.
    """
    if len(values) < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(0)
    draws = [statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(resamples)]
    return tuple(np.percentile(draws, [2.5, 97.5], axis=0))


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Some columns of the rows as aligned text."""
    cells = [list(columns)] + [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(lines)


def density(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """The paper's density of distances: a Gaussian kernel of bandwidth factor 0.25; None below two values."""
    # Imported where needed: scipy.stats takes longer than all of robgrad.
    from scipy.stats import gaussian_kde

    return gaussian_kde(values, BANDWIDTH_FACTOR) if len(values) > 1 and np.ptp(values) > 0 else None


def mode(values: np.ndarray) -> float:
    """Where `density` of the values is highest, to a thousandth of their range; NaN below two values.

    Counted into 1,000 bins and smoothed, so that intervals by resampling cost seconds.
    """
    from scipy.ndimage import gaussian_filter1d

    if len(values) < 2 or np.ptp(values) == 0:
        return math.nan
    counts, edges = np.histogram(values, 1000)
    bins = BANDWIDTH_FACTOR * np.std(values, ddof=1) / (edges[1] - edges[0])
    smooth = gaussian_filter1d(counts.astype(float), bins, mode="constant")
    return float((edges[:-1] + edges[1:])[np.argmax(smooth)] / 2)


def density_figure(path: Path, panels: Mapping[str, Mapping[str, np.ndarray]], xlabel: str) -> None:
    """One panel of densities for each title, one curve for each label; a curve with too few values is left out."""
    everything = np.concatenate([values for curves in panels.values() for values in curves.values()])
    grid = np.linspace(min(0.0, everything.min()), everything.max(), 500)
    columns = min(2, len(panels))
    figure, axes = _figure(-(-len(panels) // columns), columns, 4.6, 3.2)
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for index, (label, values) in enumerate(curves.items()):
            curve = density(values)
            if curve is None:
                continue
            color = "0.5" if index == 0 else _shade(index - 1, len(curves) - 1)
            axis.plot(grid, curve(grid), color=color, label=label)
            axis.fill_between(grid, curve(grid), color=color, alpha=0.12)
        axis.set(title=title, xlabel=xlabel, ylabel="density", ylim=(0, None))
        axis.legend(fontsize=8, frameon=False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    _save(figure, path)


def bar_figure(
    path: Path,
    names: Sequence[str],
    values: Sequence[float],
    reference: tuple[str, float],
    label: str,
    scale: str = "linear",
) -> None:
    """One horizontal bar a name, and a dashed line where `reference` lies; `scale` may be `log`."""
    figure, ((axis,),) = _figure(1, 1, 6.5, 0.6 + 0.32 * len(names))
    axis.barh(names, values, color="tab:blue")
    axis.set_xscale(scale)
    axis.axvline(reference[1], color="black", linestyle="--", label=reference[0])
    axis.invert_yaxis()
    axis.set(xlabel=label)
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def curve_figure(path: Path, panels: Mapping[str, Mapping[str, tuple]], xlabel: str, ylabel: str) -> None:
    """One panel for each title, one line with error bars for each label: `(x, y, deviation)`."""
    figure, axes = _figure(1, len(panels), 4.6, 3.4)
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=True):
        for index, (label, (x, y, deviation)) in enumerate(curves.items()):
            axis.errorbar(x, y, deviation, color=f"C{index}", label=label, marker="o", markersize=3, capsize=2)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def scatter_figure(path: Path, series: Mapping[str, tuple[np.ndarray, np.ndarray]], xlabel: str, ylabel: str) -> None:
    """Points and a least-squares line for each label."""
    figure, ((axis,),) = _figure(1, 1, 6.0, 4.2)
    for index, (label, (x, y)) in enumerate(series.items()):
        axis.scatter(x, y, s=14, color=f"C{index}", label=label)
        if len(x) > 1 and np.ptp(x) > 0:
            ends = np.array([x.min(), x.max()])
            axis.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=f"C{index}", linewidth=1)
    axis.axhline(0.0, color="0.7", linewidth=0.8)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(fontsize=8, frameon=False, title="(linear, rank correlation)", title_fontsize=8)
    _save(figure, path)


class Plane(NamedTuple):
    """One panel in the plane [-1, 1]^2: labelled points `[n, 2]`, regions of classes 0 and 1 on a grid, an arrow."""

    points: Mapping[str, np.ndarray]
    regions: np.ndarray | None = None
    arrow: tuple[np.ndarray, np.ndarray] | None = None


def plane_figure(path: Path, panels: Mapping[str, Plane]) -> None:
    """One panel for each title: points, and where given regions and an arrow."""
    figure, axes = _figure(1, len(panels), 3.4, 3.6)
    colors = ("tab:blue", "tab:red", "tab:green")
    for axis, (title, plane) in zip(axes.flat, panels.items(), strict=True):
        if plane.regions is not None:
            extent = (-1, 1, -1, 1)
            axis.imshow(
                plane.regions, cmap="coolwarm", alpha=0.25, extent=extent, origin="lower", interpolation="nearest"
            )
        for color, (label, points) in zip(colors, plane.points.items(), strict=False):
            axis.scatter(*points.T, s=1, color=color, alpha=0.4, label=label)
        if plane.arrow is not None:
            axis.annotate(
                "", plane.arrow[1], plane.arrow[0], arrowprops={"width": 1.5, "headwidth": 7, "color": "black"}
            )
        axis.set(title=title, xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axis.legend(fontsize=7, frameon=False, loc="upper left", markerscale=4)
    _save(figure, path)


def image_grid(path: Path, rows: Mapping[str, np.ndarray], *, signed: bool = False) -> None:
    """One labelled row of images `[n, H, W, C]` for each name, in [-1, 1].

    With `signed`, images are gradients: summed over channels, clipped to their 0.5 and 99.5 percentiles,
    and drawn from blue over white at zero to red.
    """
    count = max(len(images) for images in rows.values())
    figure, axes = _figure(len(rows), count, 0.9, 0.9)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=False):
            if signed:
                summed = image.sum(-1)
                low, high = np.percentile(summed, [0.5, 99.5])
                extent = max(abs(low), abs(high)) or 1.0
                axis.imshow(np.clip(summed, low, high), cmap="bwr", vmin=-extent, vmax=extent)
            else:
                axis.imshow((np.clip(image, -1, 1) + 1) / 2, cmap="gray", vmin=0, vmax=1)
        for axis in line:
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    _save(figure, path)


def _shade(index: int, count: int):
    """The standard network in blue, then robust ones from yellow to dark red as they grow stronger."""
    import matplotlib

    return "tab:blue" if index == 0 else matplotlib.colormaps["YlOrRd"](0.35 + 0.6 * index / max(count - 1, 1))


def _figure(rows: int, columns: int, width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure, path: Path) -> None:
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png", metadata={"Software": None})
    write(path, file.getvalue())


def plain(value: Any) -> Any:
    """A JSON value: Python's own numbers, NaN and infinity as null."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)
