"""What is told of networks that a user brings: tables, sentences, claims and figures, of what was measured."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.measurement import alignment, estimates, measures
from experiments.harness.measurement.alignment import fields_of
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, interval_of, with_interval
from experiments.harness.verdicts import claims
from robgrad import attacks, gradients, intervals, manifolds

Arrays = dict[str, np.ndarray]
Tables = dict[str, list[Row]]
_SPREAD = "tangent_fraction_covariance"


def tabulate(config: Any, arrays: Arrays) -> Tables:
    """A row a network; tables of radii, manifolds, attributions, classes and fallen images; and all of it in words."""
    names, labels = arrays["names"].tolist(), arrays["labels"]
    tables: Tables = {
        "robust": robust_rows(config, arrays),
        "aligned": aligned_rows(config, arrays),
        "attributed": attributed_rows(arrays),
        "by_class": class_rows(config, arrays),
        "fallen": fallen_rows(config, arrays),
        "manifolds": estimates.rows_of_manifolds(config, arrays),
        "notes": [
            {"network": name, "norm": norm, "note": str(note)}
            for norm in config.norms
            for name in names
            for note in arrays[f"notes/{norm}/{name}"]
        ],
    }
    rows = []
    for place, name in enumerate(names):
        row: Row = {"network": name, "test_accuracy": np.mean(arrays["predicted"][place] == labels)}
        for table, wanted in (
            ("robust", ("norm", "epsilon", "robust_accuracy")),
            ("aligned", ("manifold", "tangent_fraction", "fraction_same_class", "tangent_fraction_covariance")),
            ("attributed", ("attribution", "road")),
        ):
            first = next(one for one in tables[table] if one["network"] == name)
            kept = {f"{field}{end}" for field in wanted for end in ("", "_low", "_high")}
            row |= {field: value for field, value in first.items() if field in kept}
        rows.append(row)
    words = [{"network": name, "in_words": said} for name in names for said in words_of(config, name, tables, rows)]
    return {"rows": rows, "words": words, **tables}


def robust_rows(config: Any, arrays: Arrays) -> list[Row]:
    """A row for each network, norm and radius."""
    rows = []
    for place, name in enumerate(arrays["names"].tolist()):
        for norm in config.norms:
            clean = np.mean(arrays[f"{norm}/broken_by"][place, 0] != attacks.WRONG)
            for at, radius in enumerate(config.evaluated[norm]):
                row = {"network": name, "norm": norm, "epsilon": radius, "clean_accuracy": clean}
                found = intervals.of_share(arrays[f"{norm}/robust"][place, at][None])
                rows.append(row | with_interval("robust_accuracy", found))
    return rows


def aligned_rows(config: Any, arrays: Arrays) -> list[Row]:
    """A row for each network, manifold and loss of the analysis attack."""
    rows = []
    for place, name in enumerate(arrays["names"].tolist()):
        for manifold in config.manifold:
            for loss in config.analysis_losses:
                fields = fields_of(arrays, loss, manifold)
                own = {field: values[place] if values.ndim == 2 else values for field, values in fields.items()}
                moved = own["attacked_distance"][own["own"]]
                row = {"network": name, "manifold": manifold, "analysis_loss": loss}
                row |= with_interval("tangent_fraction", _mean(own["tangent_fraction"]))
                row |= {field: np.nanmean(own[field]) for field in alignment.FRACTIONS[1:]}
                row |= {"tangent_fraction_covariance": np.mean(own["covariance_chance"])}
                row |= {"tangent_fraction_chance": np.mean(own["chance"]), "attack_success": np.mean(own["own"])}
                row |= {"median_distance": np.median(moved) if len(moved) else np.nan}
                rows.append(row | {"clean_median_distance": np.median(own["distance"])})
    return rows


def attributed_rows(arrays: Arrays) -> list[Row]:
    """A row for each network and attribution: the mean of each measure over images."""
    known = [name for name in measures.MEASURES if f"measure/{name}" in arrays]
    ends = {"roar": "score", "roar_low": "low", "roar_high": "high"} if "roar/score" in arrays else {}
    return [
        {"network": name, "attribution": attribution.replace("_", " ")}
        | {one: _nanmean(arrays[f"measure/{one}"][place, at]) for one in known}
        | {column: float(arrays[f"roar/{one}"][place, at]) for column, one in ends.items()}
        for place, name in enumerate(arrays["names"].tolist())
        for at, attribution in enumerate(arrays["attributions"].tolist())
    ]


def class_rows(config: Any, arrays: Arrays) -> list[Row]:
    """A row for each network and class: accuracies at the first radius, and what it is taken for most often."""
    rows, norm, named = [], config.norms[0], _names_of(arrays)
    for place, name in enumerate(arrays["names"].tolist()):
        robust, fooled = arrays[f"{norm}/robust"][place, 0], arrays[f"{norm}/fooled"][place]
        labels, some = arrays["labels"], arrays["labels"][: len(robust)]
        for label in np.unique(labels):
            own, taken = some == label, fooled[(some == label) & (fooled != label)]
            clean = np.mean(arrays["predicted"][place][labels == label] == label)
            row: Row = {"network": name, "class": named(label), "images": int(np.sum(labels == label))}
            row |= {"clean_accuracy": clean, "robust_accuracy": robust[own].mean() if own.any() else np.nan}
            values, counts = np.unique(taken, return_counts=True)
            rows.append(row | {"taken_for": named(values[counts.argmax()]) if len(values) else None})
    return rows


def _names_of(arrays: Arrays) -> Callable[[Any], str]:
    """A class's name by its number; - for none, where the logits are not finite."""
    names = arrays["classes"].tolist()
    return lambda label: names[int(label)] if label >= 0 else "-"


def fallen_rows(config: Any, arrays: Arrays) -> list[Row]:
    """A row for each of the images that fall first, of each network and norm."""
    rows, named = [], _names_of(arrays)
    for norm in config.norms:
        for place, name in enumerate(arrays["names"].tolist()):
            for image in arrays[f"{norm}/first"][place]:
                radius = arrays[f"{norm}/falls"][place, image]
                if not radius > 0:
                    continue
                row: Row = {"network": name, "norm": norm, "image": int(image), "class": named(arrays["labels"][image])}
                row |= {"taken_for": named(arrays[f"{norm}/fooled"][place, image]), "epsilon": radius}
                rows.append(row | {"attack": str(arrays[f"{norm}/broken_by"][place, -1, image])})
    return rows


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over images `[image]` of what is finite, with its 95% interval."""
    finite = values[np.isfinite(values)]
    if len(finite) < claims.LEAST_IMAGES:
        return (float(finite.mean()) if len(finite) else np.nan), np.nan, np.nan
    value, low, high = intervals.of_seeds_and_rows(finite[None], intervals.mean)
    return float(value), float(low), float(high)


def _nanmean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def words_of(config: Any, name: str, tables: Tables, rows: Sequence[Row]) -> Iterator[str]:
    """What the numbers of a network mean, a sentence or two for each question."""
    mine = {table: [row for row in tables[table] if row["network"] == name] for table in ("robust", "aligned")}
    row = next(one for one in rows if one["network"] == name)
    first = mine["robust"][0]
    left = ", ".join(f"{one['robust_accuracy']:.0%} in {_radius(one)}" for one in mine["robust"])
    said = f"Right on {row['test_accuracy']:.0%} of {config.test_examples} test images; after AutoAttack "
    said += f"({config.auto_attack}) on {config.attacked_examples} of them on {left}"
    others = [one for one in rows if one["network"] != name]
    if others:
        best = max(others, key=lambda one: one["robust_accuracy"])
        equal = best["robust_accuracy"] == row["robust_accuracy"]
        said += f"; of the others {best['network']} {'is as robust' if equal else 'is best'} with "
        said += f"{best['robust_accuracy']:.0%} in {_radius(first)}"
    yield f"{said}."
    one = mine["aligned"][0]
    own = one["tangent_fraction"]
    yield (
        f"{own:.2f} of its loss gradient lies along the manifold (by {manifolds.KINDS[one['manifold']].title}): "
        f"{_against(own, one['fraction_same_class'])} along the tangent space of another image of its class, "
        f"{_against(own, one[_SPREAD])} of a direction with the data's covariance (of a random one "
        f"{one['tangent_fraction_chance']:.2f})."
    )
    if np.isfinite(one["median_distance"]):
        yield (
            f"Attacked images lie {one['median_distance']:.2f} from that manifold at the median, clean ones "
            f"{one['clean_median_distance']:.2f}."
        )
    scores = {one["attribution"]: one["road"] for one in tables["attributed"] if one["network"] == name}
    knows = {at: score for at, score in scores.items() if at.replace(" ", "_") not in gradients.CONTROLS}
    nothing = {at: score for at, score in scores.items() if at not in knows}
    if knows:
        best = max(knows, key=knows.__getitem__)
        said = f"By ROAD on {config.measured_examples} images the highest of {len(knows)} attributions is {best} "
        said += f"({knows[best]:.2f}; 0 is that of random pixels)"
        if nothing:
            control = max(nothing, key=nothing.__getitem__)
            said += f"; of {len(nothing)} controls that know nothing of the network it is {control} "
            said += f"({nothing[control]:.2f})"
        yield f"{said}."
    mine_of = [one for one in tables["attributed"] if one["network"] == name and "roar" in one]
    if mine_of:
        ordered = sorted(mine_of, key=lambda one: -one["roar"])
        best, last = ordered[0], ordered[-1]
        yield (
            f"By ROAR, {config.retraining_seeds} retrainings for each share of pixels, the highest is "
            f"{best['attribution']} ({best['roar']:.3f}, 95% from {best['roar_low']:.3f} to {best['roar_high']:.3f}; 0 "
            f"is that of random pixels), the lowest {last['attribution']} ({last['roar']:.3f})."
        )


def _radius(row: Row) -> str:
    """A radius as everywhere, of pixels in [-1, 1], and as it is of pixels in [0, 1]."""
    half, levels = row["epsilon"] / 2, row["epsilon"] / 2 * 255
    whole = row["norm"] == "linf" and levels > 0.5 and abs(levels - round(levels)) < 1e-3
    return f"{row['norm']} {row['epsilon']:.3g} ({f'{round(levels)}/255' if whole else f'{half:.3g}'} of [0, 1])"


def _against(own: float, other: float) -> str:
    """How a share stands to another, by what is shown of both."""
    ours, theirs = f"{own:.2f}", f"{other:.2f}"
    return f"{'as much as' if ours == theirs else 'more than' if own > other else 'less than'} the {theirs}"


def claim(config: Any, arrays: Arrays, tables: Tables) -> Iterator[Row]:
    """Whether a network's gradients keep to the manifold and its attributions beat a control; of these networks alone.

    One training tells nothing of another one, so that verdicts are 'seen once'.
    """
    del tables
    for place, name in enumerate(arrays["names"].tolist()):
        for manifold in config.manifold:
            fields = fields_of(arrays, config.analysis_losses[0], manifold)
            own, group = fields["tangent_fraction"][place], f"{name}; {manifolds.KINDS[manifold].title}"
            text = "more of the loss gradient lies along the manifold than of a direction with the data's covariance"
            yield _judged(text, group, own - fields["covariance_chance"])
            text = "more of it lies along the image's tangent space than along that of another image of its class"
            gaps = own - fields["fraction_same_class"][place]
            if np.nanmax(np.abs(gaps), initial=0.0) > 1e-6:  # Tangent spaces of a plane are all the same.
                yield _judged(text, group, gaps)
        known = arrays["attributions"].tolist()
        for control in [one for one in known if one in gradients.CONTROLS]:
            for one in [one for one in known if one not in gradients.CONTROLS][:1]:
                road = arrays["measure/road"][place]
                gap = road[known.index(one)] - road[known.index(control)]
                text = "an attribution is more faithful by ROAD than a control that knows nothing of the network"
                yield _judged(text, f"{name}; {one} against {control}".replace("_", " "), gap)


def _judged(text: str, group: str, gaps: np.ndarray) -> Row:
    value, low, high = _mean(gaps)
    over = claims.Over(1, f"{np.isfinite(gaps).sum()} images; this network alone")
    return claims.row(claims.Claim("-", text, group, "-", over), f"{value:+.3f}", low, high, claims.Steps(low, high))


def draw(workdir: Path, config: Any, arrays: Arrays, tables: Tables) -> None:
    """Accuracy against radius, shares of the gradient, gradients, images that fall, attacked images, attributions."""
    names = arrays["names"].tolist()
    colours, panels = figures.distinct(names), {}
    for norm in config.norms:
        curves = {}
        for name in names:
            mine = [row for row in tables["robust"] if (row["network"], row["norm"]) == (name, norm)]
            curves[name] = figures.along_radii(mine)
        panels[f"{norm}, AutoAttack {config.auto_attack}"] = curves
    figures.curve_figure(workdir / "robust_accuracy.svg", panels, "radius (pixels from -1 to 1)", "accuracy", colours)
    groups: dict[str, dict[str, list[figures.Interval]]] = {}
    for row in tables["aligned"]:
        if row["analysis_loss"] == config.analysis_losses[0]:
            own = interval_of(row, "tangent_fraction")
            others = [(row[field],) * 3 for field in ("fraction_same_class", "tangent_fraction_covariance")]
            groups.setdefault(manifolds.KINDS[row["manifold"]].title, {})[row["network"]] = [own, *others]
    marks = ("the image's own tangent space", "another image's of its class", "direction with the data's covariance")
    label = "share of the loss gradient along the manifold"
    figures.intervals_figure(workdir / "tangent_fraction.svg", groups, {}, label, colours, marks)
    images, loss = arrays["shown/test"], config.analysis_losses[0]
    slopes = dict(zip(names, arrays[f"shown/{loss}/gradient"], strict=True))
    figures.image_grid(workdir / "loss_gradients.svg", {"test image": images}, slopes)
    moved = dict(zip(names, arrays[f"shown/{loss}/attacked"], strict=True))
    figures.image_grid(workdir / "attacked.svg", {"test image": images, **moved})
    for norm in config.norms:
        grid: dict[str, np.ndarray] = {}
        for place, name in enumerate(names):
            grid |= {f"{name}: test image": arrays[f"{norm}/shown_clean"][place]}
            grid |= {f"{name}: adversarial": arrays[f"{norm}/shown"][place]}
        figures.image_grid(workdir / f"fallen_{norm}.svg", grid)
    if "roar/mean" in arrays:
        known = [one.replace("_", " ") for one in arrays["attributions"].tolist()]
        draws = {
            name: {
                attribution: (config.percentiles, arrays["roar/mean"][place, at], arrays["roar/std"][place, at])
                for at, attribution in enumerate(known)
            }
            | {"random": (config.percentiles, arrays["roar/random"][place, 0], np.zeros(len(config.percentiles)))}
            for place, name in enumerate(names)
        }
        colours_of = figures.distinct([*known, "random"])
        figures.curve_figure(workdir / "roar.svg", draws, "% of pixels removed", "test accuracy", colours_of)
    maps = arrays["shown/maps"].astype(np.float32)
    mapped = {name: maps[place, :, 0, :, :, None] for place, name in enumerate(names)}
    headings = [name.replace("_", " ") for name in arrays["attributions"].tolist()]
    figures.image_grid(workdir / "attributions.svg", {"test image": images[:1]}, mapped, headings=headings)
