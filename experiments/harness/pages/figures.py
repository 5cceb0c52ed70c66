"""Figures of results, each written as one SVG; a network has one colour in all of a run's figures."""

import io
import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.pages.tables import Row, in_words, interval_of
from robgrad.manifolds.densities import density
from robgrad.runs import write

Colours = Mapping[str, Any]
# Wide enough for a page's text, narrow enough for a phone held upright.
PANEL = 4.4
_REFERENCES = ("test data", "random")
_SCALES = ("Oranges", "Greens", "Reds", "Purples", "Blues", "Greys")
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "robgrad"}


def palette(kinds: Sequence[str]) -> dict[str, Any]:
    """A colour for each kind of network of a run: the standard one blue, each other stack a hue, darker with strength.

    What stands beside networks, test data and random pixels, is grey.
    """
    import matplotlib

    colours: dict[str, Any] = dict.fromkeys(_REFERENCES, "0.5") | {"standard": "tab:blue"}
    stacks: dict[str, list[str]] = {}
    for kind in kinds:
        if kind not in colours:
            stacks.setdefault(group_of(kind), []).append(kind)
    for scale, members in zip(itertools.cycle(_SCALES), stacks.values(), strict=False):
        for index, kind in enumerate(members):
            share = (index + 1) / len(members)
            colours[kind] = matplotlib.colormaps[scale](0.35 + 0.55 * share)
    return colours


def distinct(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each of some names that are no networks: ten strong ones, then their pale twins."""
    import matplotlib

    shades = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    ordered = [*shades[::2], *shades[1::2]]
    return {name: ordered[index % len(ordered)] for index, name in enumerate(dict.fromkeys(names))}


def group_of(kind: str) -> str:
    """What networks of one kind of training share in their names: `l2-xent` of `l2-xent-0.5`."""
    return re.sub(r"-[\d.e-]+$", "", kind)


def density_figure(path: Path, panels: Mapping[str, Mapping[str, np.ndarray]], xlabel: str, colours: Colours) -> None:
    """One panel of densities for each title, one curve for each label; a curve with too few values is left out."""
    everything = np.concatenate([values for curves in panels.values() for values in curves.values()])
    grid = np.linspace(min(0.0, everything.min()), everything.max(), 150)
    columns = min(2, len(panels))
    figure, axes = _figure(-(-len(panels) // columns), columns, PANEL, 3.2)
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for label, values in curves.items():
            curve = density(values)
            if curve is None:
                continue
            axis.plot(grid, curve(grid), color=colours[label], label=label)
            axis.fill_between(grid, curve(grid), color=colours[label], alpha=0.12)
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


Interval = tuple[float, float, float]


def intervals_figure(
    path: Path,
    groups: Mapping[str, Mapping[str, Sequence[Interval]]],
    references: Mapping[str, float],
    label: str,
    colours: Colours,
    marks: Sequence[str] = ("",),
) -> None:
    """Bars with their 95% intervals, in groups: a heading for each group, a bar for each of its names.

    Args:
      path: of the figure.
      groups: by heading and name a value `(value, low, high)` for each of `marks`; the first is the bar, others are
        marks upon it.
      references: dashed lines by name.
      label: of the axis.
      colours: by name.
      marks: what the values of a name are, in a legend where there are several.
    """
    count = sum(len(group) + 1 for group in groups.values())
    figure, ((axis,),) = _figure(1, 1, PANEL + 1.0, 1.1 + 0.24 * count)
    row, ticks = 0, {}
    for heading, group in groups.items():
        if len(groups) > 1 and heading:
            ticks[row] = heading
            row += 1
        for name, values in group.items():
            for index, (value, low, high) in enumerate(values):
                # An interval may leave out its own value, where it is of few.
                reach = np.nan_to_num([[max(value - low, 0.0)], [max(high - value, 0.0)]])
                if index:
                    axis.plot(value, row, "osD^v"[index % 5], color="0.25", markersize=4, markerfacecolor="white")
                else:
                    axis.barh(row, value, 0.75, color=colours.get(name, "tab:blue"), alpha=0.8)
                    axis.errorbar(value, row, xerr=reach, color="0.1", capsize=2, linewidth=1)
            ticks[row] = in_words(name)
            row += 1
    for style, (title, value) in zip((":", "--", "-."), references.items(), strict=False):
        axis.axvline(value, color="0.4", linestyle=style, label=title)
    for index, title in enumerate(marks[1:], 1):
        axis.plot([], [], "osD^v"[index % 5], color="0.25", markerfacecolor="white", label=title)
    axis.set_yticks([*ticks], [*ticks.values()])
    for text in axis.get_yticklabels():
        if text.get_text() in groups and len(groups) > 1:
            text.set_fontweight("bold")
    axis.set(xlabel=label, ylim=(row - 0.4, -0.6))
    if references or len(marks) > 1:
        axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    _save(figure, path)


def along_radii(rows: Sequence[Row]) -> tuple[list[float], list[float], np.ndarray]:
    """A curve of `curve_figure`: a network's accuracy at radius 0 and, with its interval, at the radius of each row."""
    value, low, high = np.transpose([interval_of(row, "robust_accuracy") for row in rows])
    # Where there is no interval, there is no bar.
    bars = np.nan_to_num(np.stack([value - low, high - value]))
    radii, accuracies = [0.0, *(row["epsilon"] for row in rows)], [rows[0]["clean_accuracy"], *value]
    return radii, accuracies, np.concatenate([np.zeros((2, 1)), bars], axis=1)


def curve_figure(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple]],
    xlabel: str,
    ylabel: str,
    colours: Colours,
    scale: str = "linear",
) -> None:
    """One panel for each title, one line with error bars for each label: `(x, y, deviation)`; from five on in pairs.

    Deviations are one for each point, or `[2, points]` down and up.
    """
    from matplotlib.ticker import LogLocator

    columns = len(panels) if len(panels) < 5 else 2
    figure, axes = _figure(-(-len(panels) // columns), columns, PANEL, 3.6)
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=True):
        for label, (x, y, deviation) in curves.items():
            style = {"color": colours[label], "linestyle": "--" if label in _REFERENCES else "-"}
            axis.errorbar(x, y, deviation, label=label, marker="o", markersize=3, capsize=2, **style)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=scale, yscale=scale)
        if scale == "log":
            places = sorted({value for x, _, _ in curves.values() for value in x})
            axis.set_xticks(places, [f"{place:g}" for place in places])
            axis.xaxis.set_minor_formatter("")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_formatter("")
        else:
            axis.locator_params(axis="x", nbins=5)
        axis.legend(fontsize=8, frameon=False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    _save(figure, path)


def course_figure(path: Path, curves: Mapping[str, np.ndarray]) -> None:
    """Accuracies after each epoch, a panel for each kind of training, a line for each network, its best epoch circled.

    Args:
      path: of the figure.
      curves: `[epochs]` by a name whose last part, after `/`, is the network's.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, values in curves.items():
        network = name.rpartition("/")[2]
        kind, _, seed = network.replace("-seed", " seed ").partition(" seed ")
        groups.setdefault(group_of(kind), {})[f"{kind}, seed {seed.split()[0]}" if seed else kind] = values
    columns = min(len(groups), 3)
    figure, axes = _figure(-(-len(groups) // columns), columns, PANEL, 3.2)
    for axis, (title, members) in zip(axes.flat, groups.items(), strict=False):
        for network, values in members.items():
            (line,) = axis.plot(np.arange(1, len(values) + 1), values, linewidth=1.2, label=network)
            best = int(np.argmax(values))
            axis.plot(best + 1, values[best], "o", color=line.get_color(), markerfacecolor="white")
        axis.set(title=title, xlabel="epoch", ylabel="accuracy on images held out")
        axis.locator_params(axis="x", integer=True)
        axis.legend(fontsize=8, frameon=False)
    for axis in list(axes.flat)[len(groups) :]:
        axis.remove()
    _save(figure, path)


def scatter_figure(
    path: Path,
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    xlabel: str,
    ylabel: str,
    legend: str = "(linear, rank correlation)",
) -> None:
    """Points and a least-squares line for each label."""
    figure, ((axis,),) = _figure(1, 1, PANEL + 1.0, 4.2)
    colours = distinct([*series])
    for label, (x, y) in series.items():
        axis.scatter(x, y, s=14, color=colours[label], label=in_words(label))
        if len(x) > 1 and np.ptp(x) > 0:
            ends = np.array([x.min(), x.max()])
            axis.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=colours[label], linewidth=1)
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
    columns = min(2, len(panels))
    figure, axes = _figure(-(-len(panels) // columns), columns, 3.4, 3.6)
    colors = ("tab:blue", "tab:red", "tab:green")
    for axis, (title, plane) in zip(axes.flat, panels.items(), strict=True):
        if plane.regions is not None:
            extent = (-1, 1, -1, 1)
            axis.imshow(
                plane.regions, cmap="coolwarm", alpha=0.25, extent=extent, origin="lower", interpolation="nearest"
            )
        for color, (label, points) in zip(colors, plane.points.items(), strict=False):
            # Thousands of points are drawn as pixels.
            axis.scatter(*points.T, s=1, color=color, alpha=0.4, label=label, rasterized=True)
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
    zero to red, each on a scale of its own; at the right stands where a row's scales end, the median of its images.
    Headings, where there are some, stand above the columns of gradients.
    """
    rows = [(name, values, False) for name, values in images.items()]
    rows += [(name, values, True) for name, values in (gradients or {}).items()]
    count = max(len(values) for _, values, _ in rows)
    figure, axes = _figure(len(rows), count + 1, 0.9 if headings else 0.62, 0.9 if headings else 0.66)
    for line, (name, values, signed) in zip(axes, rows, strict=True):
        extents = []
        for axis, image in zip(line, values, strict=False):
            if signed:
                summed = image.sum(-1)
                low, high = np.percentile(summed, [0.5, 99.5])
                extents.append(max(abs(low), abs(high)) or 1.0)
                axis.imshow(np.clip(summed, low, high), cmap="bwr", vmin=-extents[-1], vmax=extents[-1])
            else:
                axis.imshow((np.clip(image, -1, 1) + 1) / 2, cmap="gray", vmin=0, vmax=1)
        for axis in line:
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_visible(False)
        line[0].set_ylabel(in_words(name), rotation=0, ha="right", va="center", fontsize=8)
        # Columns of their own headings have units of their own.
        scale = ("" if headings else f"±{np.median(extents):.2g}") if extents else "-1 to 1"
        line[-1].text(0.0, 0.5, scale, transform=line[-1].transAxes, fontsize=7, va="center")
    for axis, heading in zip(axes[len(images)] if headings else (), headings, strict=False):
        axis.set_title(textwrap.fill(in_words(heading), 12), fontsize=7)
    _save(figure, path)


def _figure(rows: int, columns: int, width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure, path: Path) -> None:
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(file, dpi=120, format="svg", metadata={"Date": None, "Creator": None})
    write(path, file.getvalue())
