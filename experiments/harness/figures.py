"""Figures of results, each written as one PNG."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.harness.densities import density
from robgrad.runs import write


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


def marks_figure(
    path: Path,
    names: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    references: Mapping[str, float],
    label: str,
    least: float | None = 0.0,
) -> None:
    """A line for each name with a mark for each series, `(value, low, high)`; dashed lines where references lie.

    The axis begins at `least`, or where the marks do.
    """
    figure, ((axis,),) = _figure(1, 1, 6.5, 1.0 + 0.32 * len(names))
    for index, (title, values) in enumerate(series.items()):
        value, low, high = np.transpose(values)
        # An interval may leave out its own value, where it is of few.
        reach = np.nan_to_num(np.maximum([value - low, high - value], 0.0))
        rows = np.arange(len(names)) + 0.18 * (index - (len(series) - 1) / 2)
        axis.errorbar(value, rows, xerr=reach, fmt="osD^v"[index % 5], color=f"C{index}", markersize=4, label=title)
    for style, (title, value) in zip((":", "--", "-."), references.items(), strict=False):
        axis.axvline(value, color="0.4", linestyle=style, label=title)
    axis.set_yticks(np.arange(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel=label, xlim=(least, None))
    axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
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


def scatter_figure(
    path: Path,
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    xlabel: str,
    ylabel: str,
    legend: str = "(linear, rank correlation)",
) -> None:
    """Points and a least-squares line for each label."""
    figure, ((axis,),) = _figure(1, 1, 6.0, 4.2)
    for index, (label, (x, y)) in enumerate(series.items()):
        axis.scatter(x, y, s=14, color=f"C{index}", label=label)
        if len(x) > 1 and np.ptp(x) > 0:
            ends = np.array([x.min(), x.max()])
            axis.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=f"C{index}", linewidth=1)
    axis.axhline(0.0, color="0.7", linewidth=0.8)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(fontsize=8, frameon=False, title=legend, title_fontsize=8)
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


def image_grid(
    path: Path,
    images: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray] | None = None,
    headings: Sequence[str] = (),
) -> None:
    """One labelled row of images `[n, H, W, C]` in [-1, 1] for each name, and below them one of gradients.

    Gradients are summed over channels, clipped to their 0.5 and 99.5 percentiles, and drawn from blue over white at
    zero to red. Headings, where there are some, stand above the columns of gradients.
    """
    rows = [(name, values, False) for name, values in images.items()]
    rows += [(name, values, True) for name, values in (gradients or {}).items()]
    count = max(len(values) for _, values, _ in rows)
    figure, axes = _figure(len(rows), count, 0.9, 0.9)
    for line, (name, values, signed) in zip(axes, rows, strict=True):
        for axis, image in zip(line, values, strict=False):
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
    for axis, heading in zip(axes[len(images)] if headings else (), headings, strict=False):
        axis.set_title(heading, fontsize=7, rotation=45, ha="left")
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
