r"""Section 3.3: accuracy against the faithfulness of gradients, and two ways out of the trade-off.

Takes the run of `experiments.roar_kar` with the same flags, running it first where it has not finished, and
draws its scores against test accuracy.

    python -m experiments.tradeoff
    python -m experiments.tradeoff --dataset=cifar10 --preset=paper

Expected: ROAR scores fall with accuracy (published rank correlations -0.91 to -0.97 on CIFAR-10), and so do
KAR's for Gradient * Input (-0.56 to -0.82). Ways out: the global Gradient * Input scores above the local Gradient, and
l-inf training gains more in KAR than l2 training and loses little in ROAR.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import claims, correlations, launch, pages, presets, roar_kar, settings, stages
from robgrad import datasets, page, report
from robgrad.attributions import ATTRIBUTIONS
from robgrad.retraining import KAR, ROAR

FLAGS = flags.FLAGS
PAGE = "tradeoff.html"
TITLE = "3.3 Accuracy against faithful gradients"
QUESTION = (
    "Does accuracy have to be given up for faithful gradients, and are there ways out? The paper names two: "
    "attributions that are global, such as Gradient * Input, and l-inf training."
)
CAPTIONS = {
    "roar_accuracy_*.png": "ROAR scores against test accuracy ({} training); in the paper all lines fall.",
    "kar_accuracy_*.png": "KAR scores against test accuracy ({} training); in the paper lines fall but for Gradient "
    "with l2 training.",
}


def means(rows) -> list[report.Row]:
    """Mean score of the robust networks of each norm, and of each attribution over all."""
    robust = [row for row in rows if row["train_norm"]]
    table = []
    for benchmark in (ROAR, KAR):
        for attribution in ATTRIBUTIONS:
            row: report.Row = {"benchmark": benchmark, "attribution": attribution}
            for norm in dict.fromkeys(row["train_norm"] for row in robust):
                scores = [
                    one["score"]
                    for one in robust
                    if (one["benchmark"], one["attribution"], one["train_norm"]) == (benchmark, attribution, norm)
                ]
                row[f"mean score, {norm}"] = float(np.mean(scores))
            table.append(row)
    return table


def draw(workdir: Path, config: presets.RetrainingConfig, results: Mapping[str, Any]) -> None:
    """Draws the figures of a finished run of `roar_kar` into its directory."""
    correlations.draw(workdir, config, results["rows"], results["correlations"], "accuracy", "test accuracy")


def part_of(results: Mapping[str, Any]) -> pages.Part:
    """What the experiment puts on a page."""
    chosen, ways = [row for row in results["correlations"] if row["against"] == "accuracy"], means(results["rows"])
    tables = [
        page.Table("Correlations with test accuracy", chosen, correlations.COLUMNS),
        page.Table("Mean scores of the robust networks", ways, tuple(ways[0])),
    ]
    found = claims.of_correlations(results["correlations"], "accuracy") + claims.of_ways_out(results["rows"])
    return pages.Part(f"{TITLE}: {results['config']['dataset']}", QUESTION, CAPTIONS, tables, found)


def main() -> None:
    """Draws the figures of the flags' run."""
    dataset = datasets.load(FLAGS.dataset, FLAGS.data_dir)
    config = roar_kar.config_of_flags(dataset)
    workdir, results = roar_kar.run(settings.workdir(roar_kar.NAME), dataset, config, stages.source_of_flags())
    draw(workdir, config, results)
    pages.write(workdir / PAGE, TITLE, [(part_of(results), workdir, results)])
    correlations.show(results, "accuracy")
    ways = means(results["rows"])
    launch.show(report.table(ways, tuple(ways[0])), f"\nresults, figures and {PAGE}: {workdir}")


if __name__ == "__main__":
    launch.run(main)
