"""What the paper claims, what it published, what a run has found, and a verdict by one rule.

A claim is a number with a 95% interval, and a side of zero or a published number it should be at.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments import presets
from robgrad import report
from robgrad.retraining import KAR, ROAR

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested at this size"
RULE = (
    "Verdicts by rule. An order holds if the 95% interval of each step between neighbours lies on the claimed side of "
    "zero, and does not hold if that of any step lies wholly on the other side. A sign holds if the 95% interval of "
    "the correlation or difference lies on the published side of zero, and does not hold if wholly on the other. A "
    "published number holds at the paper's own sizes if it lies within our 95% interval, give or take what can be read "
    "off a figure (0.02), and does not hold otherwise. Everything else is not tested at this size: too few images, "
    "networks or repeats to tell, or smaller than the paper. Intervals are over test images (2.1), repeats (2.2) and "
    "networks (3.2, 3.3), for one seed of the run; they do not cover other seeds."
)
COLUMNS = {
    "section": "section",
    "claim": "claim",
    "verdict": "verdict",
    "group": "group",
    "published": "published",
    "ours": "ours",
    "low": "95% from",
    "high": "to",
}
MARKS = {HOLDS: "good", FAILS: "bad", UNTESTED: "open"}
READING_ERROR = 0.02
# Modes of the rescaled distances, read off the figures (cross-entropy analysis, l2 networks trained on
# cross-entropy): test data, standard, and the networks of growing epsilon.
MODES = {
    "mnist": (0.33, 0.63, 0.60, 0.50, 0.42),
    "fashion_mnist": (0.20, 0.62, 0.59, 0.53, 0.43),
    "cifar10": (0.07, 0.115, 0.112, 0.105, 0.094),
}


def verdict(low, high) -> str:
    """By the intervals of what should be above zero, one or several."""
    low, high = np.atleast_1d(low), np.atleast_1d(high)
    if np.all(low > 0):
        return HOLDS
    return FAILS if np.any(high < 0) else UNTESTED


def untested(section: str, claim: str, group: str, published: str) -> report.Row:
    """A claim of which nothing could be measured, for instance because no attack succeeded."""
    named = {"section": section, "claim": claim, "group": group, "published": published}
    return named | {"ours": "-", "low": None, "high": None, "verdict": UNTESTED}


def ordered(section: str, claim: str, group: str, published: str, values: np.ndarray, statistic) -> report.Row:
    """The claim that a statistic of `values`, `[example, network]`, falls strictly over networks, examples paired."""
    if not np.isfinite(values).any(axis=0).all():
        return untested(section, claim, group, published)
    found = statistic(values)
    low, high = report.interval(values, lambda draw: -np.diff(statistic(draw)))
    return {
        "section": section,
        "claim": claim,
        "group": group,
        "published": published,
        "ours": " > ".join(f"{value:.3g}" for value in found) + "; smallest step",
        "low": float(np.min(low)),
        "high": float(np.atleast_1d(high)[np.argmin(low)]),
        "verdict": verdict(low, high),
    }


def of_manifold(
    config: presets.ManifoldConfig, networks: Sequence, everything: Mapping[str, Mapping]
) -> list[report.Row]:
    """Section 2.1: the order of distances and tangent fractions in each group, and the published modes."""
    rows = []
    for analysis, measured in everything.items():
        for norm, loss in dict.fromkeys((one.norm, one.loss) for one in networks if one.norm):
            members = [i for i, one in enumerate(networks) if one.norm is None or (one.norm, one.loss) == (norm, loss)]
            group = f"{norm}, {loss}; {analysis} analysis"
            clean = measured["distance"][0]
            kept = [np.where(measured["own"][i], measured["attacked_distance"][i], np.nan) for i in members]
            distances = np.stack([*kept, clean], axis=1)
            claim, published = "median distance to the manifold falls with strength", "standard > ... > test data"
            rows.append(ordered("2.1", claim, group, published, distances, _medians))
            fractions = np.stack([measured["tangent_fraction"][i] for i in reversed(members)], axis=1)
            claim = "share of the loss gradient along the manifold rises with strength (our measure)"
            rows.append(ordered("2.1", claim, group, "-", fractions, lambda draw: np.nanmean(draw, axis=0)))
            paper = presets.MANIFOLD["paper"].get(config.dataset, {})
            modes = MODES.get(config.dataset) if config.l2_epsilons == paper.get("l2_epsilons") else None
            if modes and (norm, loss, analysis) == ("l2", "xent", "xent"):
                names = ("test data", *(networks[i].name for i in members))
                columns = (clean, *kept)
                for name, theirs, values in zip(names, modes, columns, strict=True):
                    rows.append(_mode(name, theirs, clean, values, is_paper_size(config, presets.MANIFOLD)))
    return rows


def _medians(values: np.ndarray) -> np.ndarray:
    return np.array([np.median(column[np.isfinite(column)]) for column in values.T])


def _mode(name: str, published: float, clean: np.ndarray, values: np.ndarray, full: bool) -> report.Row:
    def statistic(pairs: np.ndarray) -> float:
        clean, values = pairs.T
        return report.mode((values[np.isfinite(values)] - clean.min()) / np.ptp(clean))

    pairs = np.stack([clean, values], axis=1)
    if np.isfinite(values).sum() < 10:
        return untested("2.1", "mode of the rescaled distance", f"{name}; xent analysis", f"{published:g}")
    found, (low, high) = statistic(pairs), report.interval(pairs, statistic)
    inside = low - READING_ERROR <= published <= high + READING_ERROR
    return {
        "section": "2.1",
        "claim": "mode of the rescaled distance",
        "group": f"{name}; xent analysis",
        "published": f"{published:g}",
        "ours": f"{found:.3g}",
        "low": low,
        "high": high,
        "verdict": UNTESTED if not full else HOLDS if inside else FAILS,
    }


def is_paper_size(config: presets.Config, tables: Mapping) -> bool:
    """Whether a run has the paper's numbers throughout, whatever its seed, groups of networks and quirks."""
    paper = tables["paper"].get(config.dataset)
    free = {"dataset", "preset", "seed", "matmul_precision", "chunk", "norms", "train_losses", "analysis_losses"}
    free |= {"linf_epsilons", "robust_epsilon", "shuffle", "zero_mask", "sampled_projection"}
    fields = [field for field in dataclasses.fields(config) if field.name not in free]
    return paper is not None and all(
        getattr(config, field.name) == paper.get(field.name, field.default) for field in fields
    )


def of_toy(measured: Mapping[str, Sequence[Mapping]]) -> list[report.Row]:
    """Section 2.2: the angle of the adversarial displacement and of the boundary fall with training strength."""
    rows = []
    for field, claim in (
        ("displacement_angle", "adversarial displacement turns towards the data (degrees)"),
        ("boundary_angle", "the boundary's normal turns towards the data (degrees)"),
    ):
        values = np.array([[float(one[field]) for one in repeats] for repeats in measured.values()]).T
        published = "about 40, less, about 0 (picture)" if field == "displacement_angle" else "-"
        rows.append(ordered("2.2", claim, "standard, weak, strong", published, values, lambda draw: draw.mean(0)))
    return rows


def of_correlations(table: Sequence[report.Row], against: str) -> list[report.Row]:
    """Sections 3.2 and 3.3: the sign of each group's rank correlation of scores with strength or with accuracy."""
    rows = []
    for one in table:
        published = one["rank_published"]
        if one["against"] != against or published is None:
            continue
        verb = "rises" if published > 0 else "falls"
        bounds = np.array([one["rank_low"], one["rank_high"]], float)
        low, high = bounds if published > 0 else -bounds[::-1]
        rows.append(
            {
                "section": "3.2" if against == "strength" else "3.3",
                "claim": f"{one['benchmark'].upper()} score {verb} with {_ABSCISSAE[against]} (rank correlation)",
                "group": f"{one['train_norm']}, {one['train_loss']}; {one['attribution'].replace('_', ' ')}",
                "published": f"{published:.2f} (CIFAR-10)",
                "ours": "-" if one["rank"] is None else f"{one['rank']:.2f}, {one['networks']} networks",
                "low": one["rank_low"],
                "high": one["rank_high"],
                "verdict": UNTESTED if one["rank"] is None else verdict(low, high),
            }
        )
    return rows


_ABSCISSAE = {"strength": "training strength", "accuracy": "test accuracy"}


def of_ways_out(rows: Sequence[report.Row]) -> list[report.Row]:
    """Section 3.3's ways out: the global attribution above the local one, and what l-inf training gains over l2."""
    scores = {
        (row["benchmark"], row["attribution"], row["train_norm"], row["train_loss"], row["train_epsilon"]): row["score"]
        for row in rows
        if row["train_norm"]
    }
    found = []
    for benchmark in (ROAR, KAR):
        differences = [
            score - scores[benchmark, "gradient", *group]
            for (name, attribution, *group), score in scores.items()
            if (name, attribution) == (benchmark, "gradient_times_input")
        ]
        claim = f"{benchmark.upper()}: the global Gradient * Input scores above the local Gradient"
        found.append(_difference(claim, "robust networks", "above", differences))
    gains = {benchmark: _l_inf_gains(scores, benchmark) for benchmark in (ROAR, KAR)}
    if gains[KAR]:
        claim = "KAR: l-inf training scores above l2 training"
        found.append(_difference(claim, "strengths paired by rank", "above", gains[KAR]))
        # What is gained in ROAR makes up for no loss in KAR.
        both = [kar + min(roar, 0.0) for kar, roar in zip(gains[KAR], gains[ROAR], strict=True)]
        claim = "l-inf training gains more in KAR over l2 than it loses in ROAR"
        found.append(_difference(claim, "strengths paired by rank", "gains much, loses little", both))
    return found


def _l_inf_gains(scores: Mapping[tuple, float], benchmark: str) -> list[float]:
    """Scores of l-inf networks less those of l2 networks, from the weakest to the strongest, attributions averaged."""

    def by_strength(norm: str, loss: str) -> list[float]:
        chosen: dict[float, list[float]] = {}
        for (name, _, *group, epsilon), score in sorted(scores.items(), key=lambda item: item[0][4]):
            if name == benchmark and tuple(group) == (norm, loss):
                chosen.setdefault(epsilon, []).append(score)
        return [float(np.mean(each)) for each in chosen.values()]

    return [
        one - other
        for loss in sorted({key[3] for key in scores})
        for one, other in zip(by_strength("linf", loss), by_strength("l2", loss), strict=False)
    ]


def _difference(claim: str, group: str, published: str, differences: Sequence[float]) -> report.Row:
    low, high = report.interval(np.array(differences), np.mean)
    return {
        "section": "3.3",
        "claim": claim,
        "group": group,
        "published": published,
        "ours": f"{np.mean(differences):+.4f} on average" if differences else "-",
        "low": low,
        "high": high,
        "verdict": UNTESTED if math.isnan(low) else verdict(low, high),
    }
