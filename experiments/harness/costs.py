"""What a run will take on this machine, from a few steps of each kind of its stages."""

import contextlib
import math
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness import launch
from experiments.harness.pages import tables
from experiments.harness.pages.tables import Row
from experiments.harness.settings.options import Options
from experiments.harness.training import stages
from experiments.harness.training.specs import Spec, specs_of, stacks_of
from experiments.harness.verdicts import claims, power
from robgrad import stacking, training

ENOUGH = 2.0
# What the flag does.
DRY_RUN = "Print the stages and what they would take, measured from a few steps; nothing is run."
COLUMNS = ("dataset", "stage", "networks", "retrainings", "steps", "ms_per_step", "compile_seconds", "minutes")


class Cost(NamedTuple):
    """Seconds of a step, of a whole stack, and of compiling the program of its loop."""

    step: float
    compilation: float


def cost_of(plan: stages.Plan, examples, options: Options, seconds: float = ENOUGH) -> Cost:
    """Trains a few steps of a stage, in the program that the run itself will use, and throws them away."""
    marks: list[tuple[float, int]] = [(time.perf_counter(), 0)]

    def enough() -> bool:
        return len(marks) > 2 and marks[-1][0] - marks[1][0] > seconds

    def note(done: training.Progress) -> None:
        marks.append((time.perf_counter(), done.step))

    with contextlib.suppress(training.StoppedError):
        given = plan.options(options)
        training.fit(plan.step, plan.states, plan.numbers, examples, stop=enough, progress=note, **given)
    (start, _), (first, one), (last, steps) = marks[0], marks[1], marks[-1]
    step = (last - first) / (steps - one) if steps > one else (first - start) / one
    return Cost(step, max(0.0, first - start - one * step))


def row_of(dataset: str, plan: stages.Plan, examples, options: Options, networks: int) -> Row:
    """A row for a stage, measured."""
    steps = plan.epochs * (stacking.size(examples) // plan.batch_size)
    step, compilation = cost_of(plan, examples, options)
    return {
        **empty(dataset, plan.name),
        "networks": networks,
        "steps": steps,
        "ms_per_step": 1000 * step,
        "compile_seconds": compilation,
        "minutes": (steps * step + compilation) / 60,
    }


def empty(dataset: str, stage: str) -> Row:
    """A row with nothing in it yet."""
    return dict.fromkeys(COLUMNS) | {"dataset": dataset, "stage": stage}


def classifiers(config, specs: Sequence[Spec], dataset, train, options: Options) -> Iterator[Row]:
    """A row for each stack; of the robust ones the first is measured, the others take as long a network."""
    measured: Row = {}
    for members in stacks_of(specs):
        plan = stages.classifiers_plan(config, members, dataset)
        if not measured or not measured["robust"]:
            measured = row_of(dataset.name, plan, train, options, len(members))
            measured |= {"robust": members[0].norm is not None}
            yield measured
        else:
            step = measured["ms_per_step"] * len(members) / measured["networks"]
            minutes = (measured["steps"] * step / 1000 + measured["compile_seconds"]) / 60
            yield measured | {"stage": plan.name, "networks": len(members), "ms_per_step": step, "minutes": minutes}


def missing(config, others: Sequence[Any]) -> list[Spec]:
    """The networks that no other run trains alike."""
    there = {
        (spec, tuple(stages.training_settings(other, spec).items())) for other in others for spec in specs_of(other)
    }
    own = specs_of(config)
    return [one for one in own if (one, tuple(stages.training_settings(config, one).items())) not in there]


def warm_and_cold(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call once compiled, and what the first took beyond it."""
    marks = [time.perf_counter()]
    for _ in range(3):
        jax.block_until_ready(function())
        marks.append(time.perf_counter())
    cold, *warm = np.diff(marks)
    return min(warm), max(0.0, cold - min(warm))


def memory() -> str:
    """The most memory that the measured steps took."""
    usage = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in usage:
        limit = usage.get("bytes_limit", math.nan) / 2**30
        return f"{usage['peak_bytes_in_use'] / 2**30:.1f} of {limit:.0f} GiB on each device"
    return f"{launch.peak_memory() / 2**30:.1f} GiB"


def dry_run(parts: Sequence[Any], options: Options) -> None:
    """Prints a row for each stage of some `experiment.Part`, their sums, and what a run of that size would tell."""
    rows: list[Row] = []
    before: list[Any] = []
    for part in parts:
        others = [other.config for other in before if other.dataset is part.dataset is not None]
        measured = part.experiment.estimate(part.config, part.dataset, options, others)
        for row in measured:
            print(f"measured {row['dataset']}, {row['stage']}", file=sys.stderr)
            rows.append(row)
        before.append(part)
    total = sum(row["minutes"] for row in rows)
    retrainings = sum(row["retrainings"] or 0 for row in rows)
    alone = [row for row in rows if not row["retrainings"] and row.get("trains", row["steps"])]
    networks = sum(row["networks"] for row in alone)
    launch.show(
        tables.text(rows, COLUMNS),
        f"\n{networks} networks and {retrainings} retrainings: about {_span(total)} on this machine, "
        f"{memory()} of memory so far; evaluation, figures and start-up are not counted",
    )
    for part in parts:
        _show_power(part)


def _show_power(part: Any) -> None:
    """Prints which steps a run of this size would tell, by the record of the same experiment, where there is one."""
    # The toy repeats all of itself.
    seeds = getattr(part.config, "network_seeds", getattr(part.config, "repeats", 1))
    found = power.pilot(power.RECORDS, part.experiment.name, part.dataset.name if part.dataset else "")
    rows = power.rows_of(found[1], seeds) if found else []
    if not found or not rows:
        return
    launch.show(
        *textwrap.wrap(
            f"\n{part.experiment.title}: what {seeds} seed{'s' * (seeds > 1)} would tell with a chance of "
            f"{power.WANTED:.0%}, by the record {found[0]}; a verdict needs {claims.LEAST_SEEDS} or more:",
            launch.width(),
        )
    )
    for row in rows:
        row["claim"] = textwrap.shorten(row["claim"], max(20, launch.width() - 62), placeholder="...")
    launch.show(tables.text(rows, power.COLUMNS))


def _span(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
