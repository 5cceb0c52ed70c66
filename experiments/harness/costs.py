"""What a run will take on this machine, and what it will tell, before it is run."""

import math
import tempfile
import textwrap
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.harness import launch
from experiments.harness.pages import tables
from experiments.harness.pages.tables import Row
from experiments.harness.settings.options import Options
from experiments.harness.training.meter import COLUMNS, Cost, Meter
from experiments.harness.training.origins import Source
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims, power

# What the flag does.
DRY_RUN = "Print the stages and what they would take, measured from a few steps; nothing is run."


def dry_run(parts: Sequence[Any], options: Options) -> None:
    """Prints a row for each stage of some `experiment.Part`, their sums, and what a run of that size would tell.

    Each part is measured as in a run, with a meter in place of its stages. As there, later parts find trained what the
    first on the same data set has trained.
    """
    rows: list[Row] = []
    costs: dict[Hashable, Cost] = {}
    first: dict[int, Meter] = {}
    done: set[Path] = set()
    for part in parts:
        # What reads another's measurements has none of its own.
        if part.workdir in done:
            continue
        done.add(part.workdir)
        name, earlier = part.dataset.name if part.dataset else "toy", first.get(id(part.dataset))
        meter = Meter(name, earlier.made if earlier else (), costs)
        first.setdefault(id(part.dataset), meter)
        source = Source(options.networks_from) if options.networks_from and not earlier else None
        with jax.default_matmul_precision(part.config.matmul_precision), tempfile.TemporaryDirectory() as nowhere:
            part.experiment.base.measure(Run(Path(nowhere), part.config, options, part.dataset, source, meter))
        rows += meter.rows.values()
    total = sum(row["minutes"] for row in rows)
    retrainings = sum(row["retrainings"] or 0 for row in rows)
    networks = sum(row.get("trained", 0) for row in rows)
    launch.show(
        tables.text(rows, COLUMNS),
        f"\n{networks} networks and {retrainings} retrainings: about {_span(total)} on this machine, "
        f"{memory()} of memory so far; figures and start-up are not counted",
    )
    for part in parts:
        _show_power(part)


def memory() -> str:
    """The most memory that the measured steps took."""
    usage = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in usage:
        limit = usage.get("bytes_limit", math.nan) / 2**30
        return f"{usage['peak_bytes_in_use'] / 2**30:.1f} of {limit:.0f} GiB on each device"
    return f"{launch.peak_memory() / 2**30:.1f} GiB"


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
    if minutes < 1.5:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
