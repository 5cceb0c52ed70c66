r"""The neighbours, 1: ways to train for robustness, at equal clean accuracy.

Second-order training (SCORPIO; Tsiligkaridis and Roberts, 2020) beside its rivals: PGD training, a single step, TRADES,
and regularisers of gradients, curvature, alignment and local linearity. Each is trained at a few strengths and three
seeds; of each the strongest is taken whose clean accuracy, on images held out, is within a point of PGD training's.

    python -m experiments.ways_to_train                                  # digits, five minutes on 2 cores
    python -m experiments.ways_to_train --dataset=shapes-16              # where the manifold is known, too
    python -m experiments.ways_to_train --ways=pgd,scorpio-1,cure --auto_attack=standard

Expected, from the abstract: one iteration beats gradient and curvature regularisation in robust accuracy and masks no
gradients; several come near PGD training in a fraction of its time; gradients are better than the other regularisers'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.harness import experiment, running
from experiments.harness.measurement import evaluation, measures
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, interval_of
from experiments.harness.settings.config import AutoAttackConfig, FittedConfig, setting, subsets
from experiments.harness.training import stages
from experiments.harness.training.stages import Run
from experiments.harness.training.ways import (
    REFERENCE,
    WAYS,
    chosen_of,
    members_of,
    places_of,
    seconds_of,
    strength_of,
    taken_of,
    trained_way,
)
from experiments.harness.verdicts import claims
from robgrad import intervals, runs

SECTION = "second order"
# Published: clean, and under PGD-20 at l-inf 8/255, on 500 images of CIFAR-10.
PUBLISHED = "81.2 clean, 51.8 under PGD-20 (CIFAR-10)"


REGULARISERS = ("gradient-penalty", "cure", "llr", "grad-align")


@dataclass(frozen=True, kw_only=True)
class WaysConfig(FittedConfig, AutoAttackConfig):
    """Ways to train, their attack's radius, and what gradients are measured by."""

    needs_held_out: ClassVar[bool] = True

    ways: tuple[str, ...] = setting("Ways to train.", tuple(WAYS), choices=lambda: tuple(WAYS))
    train_radius: float = setting("Radius of training and of AutoAttack, in l-inf.")
    train_step_size: float = setting("Step of PGD in training.")
    pca_dimensions: int = setting("Dimensions of the plane that the tangent fraction is estimated by.", 10)
    measured_examples: int = setting("Test images whose gradients are measured, the first ones.", 200)


def measure(run: Run) -> experiment.Arrays:
    """Hits on images held out and on test images of all networks; of those chosen what attacks and gradients say."""
    config = run.config
    train, test = subsets(config, run.dataset)
    held = run.dataset.train.take(config.held_out)
    trained = runs.joined([trained_way(run, way, train) for way in config.ways])
    key = stages.key_of(config.seed, "ways")
    shown = {"held_hits": held, "test_hits": test}
    arrays = {name: evaluation.hits(run, trained, of, key) for name, of in shown.items()}
    arrays["seconds"] = seconds_of(run, train)
    chosen = chosen_of(config, arrays)
    places = [place for places in chosen.values() for place in places]
    own = trained.take(places)
    found = evaluation.auto_attacked(run, own, test, "linf", (config.train_radius,))
    arrays |= {"robust_hits": found.pop("robust")[:, 0]} | {name: of for name, of in found.items() if "notes" in name}
    return arrays | measures.of_gradients(run, own, train, test)


MEASURED = {"robust_accuracy": "robust_hits", "fraction_pca": "fraction/pca", "fraction_exact": "fraction/exact"}
MEASURED |= {"road": "road", "road_elsewhere": "road_elsewhere"}


def tabulate(config: WaysConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each way at its chosen strength; one for each strength tried."""
    members, chosen, places = members_of(config), chosen_of(config, arrays), places_of(config, arrays)
    taken = taken_of(config, arrays["held_hits"])
    pgd = arrays["seconds"][config.ways.index(REFERENCE)].mean() if REFERENCE in config.ways else np.nan
    rows = []
    for index, way in enumerate(config.ways):
        row: Row = {"way": way, "strength": strength_of(way, members[chosen[way][0]].strength)}
        row["equal"] = taken[way][1]
        row |= claims.bounded("test_accuracy", arrays["test_hits"][chosen[way]])
        for column, field in MEASURED.items():
            if field in arrays:
                row |= claims.bounded(column, arrays[field][places[way]])
        seconds = arrays["seconds"][index].mean()
        row |= {"ms_per_step": 1000 * seconds, "time_over_pgd": seconds / pgd, "network_seeds": len(places[way])}
        rows.append(row)
    tried = []
    for way in config.ways:
        for strength in range(len(WAYS[way].strengths)):
            mine = [place for place, one in enumerate(members) if one[:2] == (way, strength)]
            about = {"way": way, "strength": strength_of(way, strength), "taken": mine == chosen[way]}
            accuracy = {f"{name}_accuracy": arrays[f"{name}_hits"][mine].mean() for name in ("held", "test")}
            tried.append(about | accuracy)
    named = [members[place] for places in chosen.values() for place in places]
    return {"rows": rows, "tried": tried, "notes": evaluation.notes_of(named, "linf", arrays)}


def claim(config: WaysConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """What the abstract says, and how each way stands to PGD training."""
    places, there = places_of(config, arrays), {*config.ways}
    own = {row["way"]: row for row in tables["rows"]}

    def compared(text: str, group: str, published: str, field: str, one: str, other: str, margin: float = 0.0) -> Row:
        """That one way is above another in what was measured, where their clean accuracies are equal."""
        gains = arrays[field][places[one]] * 1.0 - arrays[field][places[other]]
        attack = f", AutoAttack {config.auto_attack}" if field == "robust_hits" else ""
        over = claims.Over(config.network_seeds, f"{gains.shape[1]} images{attack}")
        note = "; clean " + ", ".join(f"{own[way]['test_accuracy']:.3f}" for way in (one, other))
        judged = claims.gain(claims.Claim(SECTION, text, group, published, over), gains, margin, note)
        return judged if own[one]["equal"] and own[other]["equal"] else judged | {"verdict": claims.UNTESTED}

    for rival in ("gradient-penalty", "cure"):
        if {"scorpio-1", rival} <= there:
            text = "second-order training: one iteration beats gradient and curvature regularisation in robust accuracy"
            yield compared(text, f"against {rival}", "stronger", "robust_hits", "scorpio-1", rival)
    for way in [way for way in config.ways if way.startswith("scorpio")]:
        yield masking(config, arrays, way)
    for way in ("scorpio-5", "scorpio-5-differences"):
        if {way, REFERENCE} <= there:
            text = "second-order training: several iterations come within 5 points of PGD training"
            yield compared(text, way, "strong robustness", "robust_hits", way, REFERENCE, margin=0.05)
            yield faster(config, arrays, way)
    measures = {"fraction/pca": "tangent fraction", "fraction/exact": "true tangent fraction", "road": "ROAD"}
    for field, what in measures.items():
        for rival in REGULARISERS:
            if field in arrays and {"scorpio-1", rival} <= there:
                text = "second-order training's gradients are better than the other regularisers'"
                yield compared(text, f"{what}, against {rival}", "higher quality", field, "scorpio-1", rival)
    if "scorpio-1" in there:
        text, over = "accuracy on CIFAR-10 at l-inf 8/255", claims.Over(0, "-")
        yield claims.untested(claims.Claim(SECTION, text, "scorpio", PUBLISHED, over))
    for way in config.ways:
        if REFERENCE in there and way not in (REFERENCE, "standard"):
            text = "a way to train is more robust than PGD training at equal clean accuracy (our test)"
            yield compared(text, way, "-", "robust_hits", way, REFERENCE)


def masking(config: WaysConfig, arrays: experiment.Arrays, way: str) -> Row:
    """Whether AutoAttack noted masked gradients on any of a way's networks; that it noted none is no proof."""
    members, chosen = members_of(config), chosen_of(config, arrays)
    named = [members[place].name for place in chosen[way]]
    signs = ("masked", "Square", "not risen")
    masked = [name for name in named if any(sign in str(note) for note in arrays[f"notes/{name}"] for sign in signs)]
    text = "second-order training avoids gradient masking: AutoAttack notes none"
    over = claims.Over(config.network_seeds, f"AutoAttack {config.auto_attack}")
    one = claims.Claim(SECTION, text, way, "none", over)
    judged = claims.FAILS if masked else claims.UNTESTED
    judged = claims.of_few(judged, config.network_seeds)
    return claims.row(one, f"noted on {len(masked)} of {len(named)} networks", None, None, judged)


def faster(config: WaysConfig, arrays: experiment.Arrays, way: str) -> Row:
    """Whether a step takes less time than one of PGD training, by repeated timings."""
    seconds = {name: arrays["seconds"][config.ways.index(name)] for name in (way, REFERENCE)}
    logs = np.log(seconds[REFERENCE] / seconds[way])
    low, high = intervals.of_mean(logs)
    text = "second-order training: several iterations train in significantly less time than PGD training"
    over = claims.Over(0, f"{len(logs)} timings on one machine, PGD of {config.attack_steps} steps")
    one = claims.Claim(SECTION, text, way, "significantly lower", over)
    ours = f"PGD takes {np.exp(logs.mean()):.2f} times as long"
    return claims.row(one, ours, float(np.exp(low)), float(np.exp(high)), claims.Steps(low, high))


def draw(workdir: Path, config: WaysConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Robust accuracies with intervals, and against time."""
    del arrays
    rows = tables["rows"]
    colours = figures.distinct([row["way"] for row in rows])
    own = {row["way"]: [interval_of(row, "robust_accuracy"), interval_of(row, "test_accuracy")] for row in rows}
    label = f"accuracy under AutoAttack {config.auto_attack}, l-inf {config.train_radius:g}"
    figures.intervals_figure(workdir / "ways.svg", {"": own}, {}, label, colours, ("robust", "clean"))
    points = {row["way"]: (np.array([row["ms_per_step"]]), np.array([row["robust_accuracy"]])) for row in rows}
    xlabel = "milliseconds a step and network"
    figures.scatter_figure(workdir / "cost.svg", points, xlabel, "robust accuracy", legend="way to train")


EXPERIMENT = experiment.Experiment(
    name="ways_to_train",
    title="Ways to train for robustness, at equal clean accuracy",
    question="Does training on the loss's second-order approximation give what PGD training gives, in less time and "
    "with better gradients than other regularisers? Compared at equal clean accuracy, under AutoAttack.",
    config=WaysConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "way": "way to train",
        "strength": "strength taken",
        "equal": "clean accuracy equal",
        **{"test_accuracy": "test accuracy", "robust_accuracy": "robust accuracy"},
        **{"fraction_pca": "tangent fraction by PCA"},
        **{
            "fraction_exact": "true tangent fraction",
            "road": "ROAD",
            "road_elsewhere": "ROAD of another image's gradient",
        },
        **{"ms_per_step": "ms a step and network", "time_over_pgd": "time over PGD training's"},
    },
    others={
        "tried": ("Every strength tried", ("way", "strength", "held_accuracy", "test_accuracy", "taken")),
        "notes": evaluation.NOTES,
    },
    captions={
        "ways.svg": "Robust accuracy of each way to train at the greatest strength whose clean accuracy (marks) is no "
        "lower than PGD training's; intervals are over seeds and images.",
        "cost.svg": "Robust accuracy against the time of a training step.",
    },
    paper_datasets=("cifar10",),
    takes="five minutes",
    picture="ways.svg",
    neighbour=True,
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
