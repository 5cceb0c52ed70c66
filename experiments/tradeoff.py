r"""Section 3.3: accuracy against the faithfulness of gradients, and two ways out of the trade-off.

Takes the run of `experiments.roar_kar` with the same flags, running it first where it has not finished, and
draws its scores against test accuracy.

    python -m experiments.tradeoff
    python -m experiments.tradeoff --dataset=cifar10 --preset=paper

Expected: ROAR scores fall with accuracy (published rank correlations -0.91 to -0.97 on CIFAR-10), and so do
KAR's for Gradient * Input (-0.56 to -0.82). Ways out: the global Gradient * Input scores above the local Gradient, and
l-inf training gains more in KAR than l2 training and loses little in ROAR.
"""

import numpy as np

from experiments import correlations, launch, roar_kar
from robgrad import report
from robgrad.attributions import ATTRIBUTIONS
from robgrad.retraining import KAR, ROAR


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


def main() -> None:
    """Draws the figures of the flags' run."""
    workdir, config, results = roar_kar.run_benchmark()
    rows, table = results["rows"], results["correlations"]
    correlations.draw(workdir, config, rows, table, "accuracy", "test accuracy")
    correlations.show(results, "accuracy")
    ways = means(rows)
    launch.show(report.table(ways, tuple(ways[0])), f"\nresults and figures: {workdir}")


if __name__ == "__main__":
    launch.run(main)
