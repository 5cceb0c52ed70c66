r"""The whole paper from one command: every experiment, on shared networks, and one page about all of it.

    python -m experiments.reproduce                       # digits, about 12 minutes on 2 cores
    python -m experiments.reproduce --dry_run             # what it would take here
    python -m experiments.reproduce --preset=paper        # mnist, fashion_mnist, cifar10: a large GPU, a day

The toy of section 2.2 comes first, then section 2.1 on each data set, then sections 3.2 and 3.3, whose networks
are taken from section 2.1 where it has them; the page is there from the first experiment on. Every other
experiment's flags hold for all of them.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import (
    boundary_tilting,
    estimate,
    launch,
    manifold_distance,
    pages,
    presets,
    roar_kar,
    settings,
    stages,
    tradeoff,
)
from robgrad import datasets, report

FLAGS = flags.FLAGS
NAME = "reproduce"
TITLE = "Bridging Adversarial Robustness and Gradient Interpretability, reproduced"
PAPER_DATASETS = ("mnist", "fashion_mnist", "cifar10")

flags.DEFINE_list(
    "datasets", None, "Data sets of section 2.1. Default: digits, or with --preset=paper the paper's three."
)
flags.DEFINE_list(
    "retrained", None, "Data sets of sections 3.2 and 3.3. Default: --datasets, or with --preset=paper cifar10 of them."
)
flags.DEFINE_bool("dry_run", False, "Print the stages and what they would take here, measured from a few steps.")


def chosen() -> tuple[list[str], list[str]]:
    """The names of the data sets analysed, and of those retrained on."""
    paper = FLAGS.preset == "paper"
    default = PAPER_DATASETS if paper and not FLAGS["dataset"].present else (FLAGS.dataset,)
    analysed = list(default if FLAGS.datasets is None else FLAGS.datasets)
    if FLAGS.retrained is not None:
        return analysed, list(FLAGS.retrained)
    return analysed, [name for name in analysed if name == "cifar10" or not paper]


def dry_run(sets: dict[str, datasets.Dataset], analysed: Sequence[str], retrained: Sequence[str]) -> None:
    """Prints a row for each stage, and their sums."""
    configs = {name: settings.from_flags(presets.ManifoldConfig, presets.MANIFOLD, sets[name]) for name in analysed}
    grids = {name: roar_kar.config_of_flags(sets[name]) for name in retrained}
    measured = itertools.chain(
        [estimate.row_of_toy()],
        *(estimate.rows_of_manifold(config, sets[name]) for name, config in configs.items()),
        *(estimate.rows_of_retraining(grid, sets[name], configs.get(name)) for name, grid in grids.items()),
    )
    rows = []
    for row in measured:
        print(f"measured {row['dataset']}, {row['stage']}", file=sys.stderr)
        rows.append(row)
    total = sum(row["minutes"] for row in rows)
    retrainings = sum(row["retrainings"] or 0 for row in rows)
    trained = [row for row in rows if not row["retrainings"] and (row["steps"] or row["dataset"] == "toy")]
    networks = sum(row["networks"] for row in trained)
    launch.show(
        report.table(rows, estimate.COLUMNS),
        f"\n{networks} networks and {retrainings} retrainings: about {_span(total)} on this machine, "
        f"{estimate.memory()} of memory so far; evaluation, figures and start-up are not counted",
    )


def _span(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"


def main() -> None:
    """Runs all experiments of the flags, or says what they would take."""
    analysed, retrained = chosen()
    labels = [settings.label(name) for name in dict.fromkeys([*analysed, *retrained])]
    if len({*labels}) < len(labels):
        raise flags.IllegalFlagValueError(f"--datasets: expected different names, got {', '.join(labels)}")
    sets = {name: datasets.load(name, FLAGS.data_dir) for name in dict.fromkeys([*analysed, *retrained])}
    if FLAGS.dry_run:
        dry_run(sets, analysed, retrained)
        return
    root = Path(FLAGS.workdir or f"runs/{NAME}-{'-'.join(labels)}-{FLAGS.preset}").expanduser()
    parts: list[tuple[pages.Part, Path, Any]] = []

    def add(part: pages.Part, workdir: Path, results: Any) -> None:
        parts.append((part, workdir, results))
        pages.write(root / pages.PAGE, TITLE, parts)
        launch.show(f"{part.title}: {pages.verdicts(part.claims)} ({root / pages.PAGE})")

    workdir, results = boundary_tilting.run(root / boundary_tilting.NAME)
    add(boundary_tilting.part_of(results), workdir, results)
    for name in analysed:
        config = settings.from_flags(presets.ManifoldConfig, presets.MANIFOLD, sets[name])
        place = root / f"{manifold_distance.NAME}-{settings.label(name)}"
        workdir, results = manifold_distance.run(place, sets[name], config, stages.source_of_flags())
        add(manifold_distance.part_of(results), workdir, results)
    for name in retrained:
        grid, other = roar_kar.config_of_flags(sets[name]), root / f"{manifold_distance.NAME}-{settings.label(name)}"
        source = stages.Source(other, strict=False) if name in analysed else stages.source_of_flags()
        workdir, results = roar_kar.run(root / f"{roar_kar.NAME}-{settings.label(name)}", sets[name], grid, source)
        tradeoff.draw(workdir, grid, results)
        add(roar_kar.part_of(results), workdir, results)
        add(tradeoff.part_of(results), workdir, results)


if __name__ == "__main__":
    launch.run(main)
