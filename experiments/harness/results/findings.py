"""What was found, for the front page: each answer in plain words with its verdict, a number and where it is from."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.pages import tables
from experiments.harness.pages.tables import Row
from experiments.harness.verdicts import claims
from robgrad.faithfulness import KAR, RANDOM, ROAR

Results = Mapping[str, Any]


class Finding(NamedTuple):
    """One question of the front page.

    Attributes:
      text: what is claimed, in plain words.
      record: the recorded run that answers it.
      claims: beginnings of the claims that are meant.
      number: a record's results, and the claims' rows, to what stands beside the verdict.
    """

    text: str
    record: str
    claims: Sequence[str]
    number: Callable[[Results, Sequence[Row]], str]


def strongest(results: Results) -> tuple[list[Row], list[Row]]:
    """Rows by the first manifold, of each analysis: the standard network's, and those of the most strongly trained one
    of each norm and loss.
    """
    of: dict[tuple, Row] = {}
    for row in results["rows"]:
        if row.get("manifold") == results["rows"][0].get("manifold"):
            kind = (row["train_norm"], row["train_loss"], row.get("analysis_loss"))
            of[kind] = max(of.get(kind, row), row, key=lambda one: one["train_epsilon"])
    standard = [row for (norm, *_), row in of.items() if norm is None]
    return standard, [row for (norm, *_), row in of.items() if norm is not None]


def change(column: str, results: Results, rows: Sequence[Row] = (), beside: Mapping[str, str] = {}) -> str:
    """A column from the standard network to the strongest ones, and what else the standard one's row has to compare."""
    del rows
    standard, others = strongest(results)
    known = {name: field for name, field in beside.items() if standard[0].get(field) is not None}
    compared = "".join(f"; {name} {_range(standard, field)}" for name, field in known.items())
    return f"standard {_range(standard, column)}, strongest {_range(others, column)}{compared}"


def _range(rows: Sequence[Row], column: str) -> str:
    """The smallest and the largest number of a column."""
    ends = [f"{end(row[column] for row in rows):.2f}" for end in (min, max)]
    return " to ".join(dict.fromkeys(ends))


def spans(what: str, results: Results, rows: Sequence[Row]) -> str:
    """From the smallest to the largest of what the groups found."""
    del results
    values = [float(re.split(r"[ ,;]", str(row["ours"]))[0]) for row in rows]
    return f"{what} {min(values):.2f} to {max(values):.2f}"


def correlated(benchmark: str, results: Results, rows: Sequence[Row]) -> str:
    """What the groups' correlations are, and the scores that they are of."""
    of = [row for row in results["rows"] if row["benchmark"] == benchmark and row["attribution"] != RANDOM]
    scores = [row["score"] for row in of]
    return f"{spans('rank correlations', results, rows)}; scores {min(scores):.2f} to {max(scores):.2f}, random 0"


def first(results: Results, rows: Sequence[Row]) -> str:
    """What the first group found, in its own words."""
    del results
    return str(rows[0]["ours"]).split(";")[0]


_CLEAN = {"clean images": "clean_median_distance"}
_CHANCE = {
    "a random direction": "tangent_fraction_chance",
    "one with the data's covariance": "tangent_fraction_covariance",
}
_TRUE_CHANCE = {"a random direction": "chance", "one with the data's covariance": "covariance_chance"}
_RISES = ("true share of the loss gradient along the manifold rises with strength",)
FINDINGS = (
    Finding(
        "Attacked images of adversarially trained networks lie nearer to the image manifold (digits)",
        "manifold_distance-digits",
        ("median distance to the manifold falls",),
        partial(change, "median_distance", beside=_CLEAN),
    ),
    Finding(
        "More of their loss gradient lies along the manifold (digits; share of its squared length)",
        "manifold_distance-digits",
        ("share of the loss gradient along the manifold rises",),
        partial(change, "tangent_fraction", beside=_CHANCE),
    ),
    Finding(
        "This share where the manifold is known (rendered shapes, cross-entropy)",
        "known_manifold-shapes",
        _RISES,
        partial(change, "tangent_fraction", beside=_TRUE_CHANCE),
    ),
    Finding(
        "Attacked images lie nearer by five manifolds (rendered shapes; numbers: VAE-GAN)",
        "manifold_distance-shapes",
        ("median distance",),
        partial(change, "median_distance", beside=_CLEAN),
    ),
    Finding(
        "The share by these (rendered shapes; VAE-GAN)",
        "manifold_distance-shapes",
        ("share of the loss gradient along",),
        partial(
            change,
            "tangent_fraction",
            beside={"a direction with the data's covariance": "tangent_fraction_covariance"},
        ),
    ),
    Finding(
        "This share on images that a VAE-GAN has made from digits",
        "known_manifold-digits",
        _RISES,
        partial(change, "tangent_fraction", beside=_TRUE_CHANCE),
    ),
    Finding(
        "In a plane, stronger training turns the boundary's normal towards the data (degrees)",
        "boundary_tilting",
        ("the boundary's normal turns",),
        first,
    ),
    Finding(
        "Gradients become more faithful with strength by ROAR (digits)",
        "roar_kar-digits-grid",
        ("ROAR score rises with training strength",),
        partial(correlated, ROAR),
    ),
    Finding(
        "By KAR scores change as published (digits)",
        "roar_kar-digits-grid",
        ("KAR score rises or falls with training strength",),
        partial(correlated, KAR),
    ),
    Finding(
        "Networks are more robust than the standard one at their training radius (digits, short AutoAttack)",
        "robustness-digits",
        ("a network is more robust than the standard one",),
        partial(spans, "gains in accuracy"),
    ),
    Finding(
        "An image's own gradient is a better attribution than another image's (digits)",
        "faithfulness-digits",
        ("the gradient at the image beats",),
        partial(spans, "differences of scores"),
    ),
    Finding(
        "A later training method is more robust than PGD training at equal clean accuracy (digits)",
        "ways_to_train-digits",
        ("a way to train is more robust",),
        partial(spans, "gains in accuracy"),
    ),
)


def chosen(finding: Finding, rows: Iterable[Row]) -> list[Row]:
    """The rows of the claims that a finding is about."""
    return [row for row in rows if row["claim"].startswith(tuple(finding.claims))]


def table(results_of: Callable[[str], Results]) -> str:
    """The front page's table, from each record's results by name."""
    lines = []
    for finding in FINDINGS:
        results = results_of(finding.record)
        rows = chosen(finding, results["claims"])
        verdict = claims.summed([row["verdict"] for row in rows])
        for mark in (claims.FAILS, claims.ONCE_REVERSED):
            verdict = verdict.replace(mark, f"**{mark}**")
        link = f"[record](experiments/results/{finding.record})"
        number = finding.number(results, rows)
        lines.append({"claim": finding.text, "verdict, by group": verdict, "number": number, "": link})
    return tables.text(lines, list(lines[0]), "github")


def answers(results_of: Callable[[str], Results]) -> str:
    """Three sentences with numbers: the paper's claim, its explanation, and what speaks against it."""
    digits, clothes, rendered, mnist = (
        results_of(f"manifold_distance-{name}") for name in ("digits", "fashion_mnist", "shapes", "mnist")
    )
    shapes, faithful = results_of("known_manifold-shapes"), results_of("faithfulness-digits")
    standard, others = strongest(digits)
    before = np.mean([one["robust_accuracy"] for one in standard])
    (far, near), (along, more) = (_ends(digits, column) for column in ("median_distance", "tangent_fraction"))
    (farther, nearer), (less, most_along) = (
        _ends(clothes, column) for column in ("median_distance", "tangent_fraction")
    )
    true, truest = _ends(shapes, "tangent_fraction")
    radius = digits["config"]["robust_epsilon"]
    roar = {name: _roar(faithful, name) for name in ("noise blurred", "gradient")}
    least, most = (end(one["robust_accuracy"] for one in others) for end in (min, max))
    elsewhere_before, elsewhere_after = _ends(digits, "fraction_same_class")
    spread = strongest(clothes)[0][0]["tangent_fraction_covariance"]
    said = (
        f"The paper's claim: attacked images of adversarially trained networks lie nearer to the manifold. On digits "
        f"the median distance falls from {far:.2f} to {near:.2f} for the strongest training, on Fashion-MNIST from "
        f"{farther:.1f} to {nearer:.1f} ({_verdict(FINDINGS[0], digits, clothes)}).",
        f"Its explanation: more of such a network's gradient lies along the manifold, {more:.2f} of its squared "
        f"length against {along:.2f}, on Fashion-MNIST {most_along:.2f} against {less:.2f} "
        f"({_verdict(FINDINGS[1], digits, clothes)}); on shapes, whose manifold is known, "
        f"{truest:.2f} against {true:.2f} ({_verdict(FINDINGS[2], shapes)}, a rerun: two networks had not "
        "trained).",
        f"What limits it: distances on rendered shapes are {_verdict(FINDINGS[3], rendered)}, on MNIST "
        f"{_verdict(FINDINGS[0], mnist)}. Along the tangent space of another image of its class the share rises, too "
        f"(digits {elsewhere_before:.2f} to {elsewhere_after:.2f}). A direction with the data's covariance has "
        f"{spread:.2f} on Fashion-MNIST (strongest networks {most_along:.2f}). Robust accuracy of digits' strongest "
        f"networks at l2 {radius:g} is {least:.2f} to {most:.2f}, of the standard one {before:.2f} (short AutoAttack). "
        f"By ROAR blurred noise, which knows nothing, scores {roar['noise blurred']}, gradients of robust networks "
        f"{roar['gradient']}.",
    )
    return "\n".join(f"- {sentence}" for sentence in said)


def _roar(results: Results, attribution: str) -> str:
    """The ROAR scores of an attribution of robust networks."""
    mine = [row["roar"] for row in results["rows"] if row["train_norm"] and row["attribution"] == attribution]
    return f"{min(mine):.2f} to {max(mine):.2f}"


def _ends(results: Results, column: str) -> tuple[float, float]:
    """Means of a column over analyses: of the standard network, and of the most strongly trained ones."""
    standard, others = (float(np.mean([one[column] for one in rows])) for rows in strongest(results))
    return standard, others


def _verdict(finding: Finding, *records: Results) -> str:
    every = [row for results in records for row in chosen(finding, results["claims"])]
    return claims.summed([row["verdict"] for row in every])


def failures(families: Mapping[str, Mapping[str, Sequence[str]]], most: int = 6) -> str:
    """What does not hold, or was seen the other way round, a line each: those that fail in most groups first.

    Of those that fail in as many, those come first that fail in the greater share of their groups.

    Args:
      families: verdicts by claim and set.
      most: lines.
    """
    found = []
    for text, of in families.items():
        for mark in (claims.FAILS, claims.ONCE_REVERSED):
            where: dict[str, tuple[int, int]] = {}
            for name, one in of.items():
                short = name.split(",")[0].split(" (")[0]
                count, groups = where.get(short, (0, 0))
                where[short] = (count + one.count(mark), groups + len(one))
            where = {name: counts for name, counts in where.items() if counts[0]}
            if where:
                plain = text.replace(" (our test)", "").replace(" (our measure)", "")
                said = ", ".join(f"{name} {count} of {all}" for name, (count, all) in where.items())
                total, groups = map(sum, zip(*where.values(), strict=True))
                found.append((mark != claims.FAILS, -total, -total / groups, f"- {plain}: **{mark}** ({said})"))
    return "\n".join(line for *_, line in sorted(found)[:most]) or "- nothing"
