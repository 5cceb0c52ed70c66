r"""How robust: accuracy against radius under AutoAttack, for every network of a run.

Trains a standard and several adversarially trained networks, or takes another run's, and evaluates each under
AutoAttack in each norm along several radii; images that a smaller radius breaks are not attacked again.

    python -m experiments.robustness                                    # digits, short version
    python -m experiments.robustness --auto_attack=standard --networks_from=runs/manifold_distance-digits-quick
    python -m experiments.robustness --dataset=mnist --preset=paper     # a large GPU

Expected: within the radius that a network was trained for, the stronger its training the higher its accuracy; the
standard network falls fastest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import experiment, running
from experiments.harness.measurement import evaluation
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, with_interval
from experiments.harness.settings.config import AttackedConfig, setting, subsets
from experiments.harness.training import stages
from experiments.harness.training.specs import kinds_of, specs_of
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims
from robgrad import attacks, intervals


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(AttackedConfig):
    """AutoAttack along radii."""

    evaluated: Mapping[str, tuple[float, ...]] = setting(
        "Radii evaluated in the {} norm.", zero=True, by_norm="{}_evaluated"
    )


def measure(run: Run) -> experiment.Arrays:
    """By norm whether each image is robust and which attack broke it, `[network, radius, image]`; and notes."""
    config = run.config
    train, test = subsets(config, run.dataset)
    trained = stages.train_networks(run, specs_of(config), train)
    arrays: experiment.Arrays = {}
    for norm, radii in config.evaluated.items():
        found = evaluation.auto_attacked(run, trained, test, norm, radii)
        arrays |= {f"{norm}/{name}": values for name, values in found.items()}
    return arrays


def tabulate(config: RobustnessConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each kind of network, norm and radius; what each attack broke; what speaks against the numbers."""
    specs, rows, broken, notes = specs_of(config), [], [], []
    for norm, radii in config.evaluated.items():
        for place, radius in enumerate(radii):
            for kind, members in kinds_of(specs).items():
                robust = arrays[f"{norm}/robust"][members, place] * 1.0
                named = {**specs[members[0]].row, "norm": norm, "epsilon": radius}
                rows.append(
                    named
                    | {
                        "network_seeds": len(members),
                        "clean_accuracy": np.mean(arrays[f"{norm}/broken_by"][members, place] != attacks.WRONG),
                        **with_interval("robust_accuracy", intervals.of_seeds_and_rows(robust, intervals.mean)),
                    }
                )
                by = arrays[f"{norm}/broken_by"][members, place]
                names = [name for name in np.unique(by) if name not in ("", attacks.WRONG)]
                broken += [
                    {
                        "network": kind,
                        "norm": norm,
                        "epsilon": radius,
                        "attack": str(name),
                        "share": np.mean(by == name),
                    }
                    for name in names
                ]
        notes += evaluation.notes_of(specs, norm, arrays, f"{norm}/")
    return {"rows": rows, "broken": broken, "notes": notes}


def claim(config: RobustnessConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """Each network trained for a radius is more robust there than the standard one."""
    del tables
    specs = specs_of(config)
    places = kinds_of(specs)
    for norm, radii in config.evaluated.items():
        for spec in specs:
            if spec.norm != norm or spec.seed or spec.epsilon not in radii:
                continue
            robust = arrays[f"{norm}/robust"][:, radii.index(spec.epsilon)] * 1.0
            gains = robust[places[spec.kind]] - robust[places["standard"]]
            value, low, high = intervals.of_seeds_and_rows(gains, intervals.mean)
            over = claims.Over(config.network_seeds, f"{gains.shape[1]} images, AutoAttack {config.auto_attack}")
            text = "a network is more robust than the standard one at the radius it was trained for"
            text += f" (our test, AutoAttack {config.auto_attack})"
            one = claims.Claim("-", text, f"{spec.kind}", "-", over)
            yield claims.row(one, f"{value:+.3f}", float(low), float(high), claims.Steps(low, high))


def draw(workdir: Path, config: RobustnessConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Robust accuracy against radius, a panel a norm; in each the standard network and those trained in that norm."""
    del arrays
    panels: dict[str, Any] = {}
    for norm, radii in config.evaluated.items():
        of: dict[str, list[Row]] = {}
        for row in tables["rows"]:
            if row["norm"] == norm and row["train_norm"] in (None, norm) and row["train_loss"] in (None, "xent"):
                of.setdefault(row["network"], []).append(row)
        assert all(len(rows) == len(radii) for rows in of.values())
        curves = {name: figures.along_radii(rows) for name, rows in of.items()}
        panels[f"{norm}, AutoAttack {config.auto_attack}"] = curves
    colours = figures.palette([*kinds_of(specs_of(config))])
    figures.curve_figure(workdir / "robust_accuracy.svg", panels, "radius (pixels from -1 to 1)", "accuracy", colours)


EXPERIMENT = experiment.Experiment(
    name="robustness",
    title="Robust accuracy under AutoAttack",
    question="How robust are the networks, under the field's yardstick and not the attack that they were trained on?",
    config=RobustnessConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "network": "network",
        "norm": "norm",
        "epsilon": "radius",
        "clean_accuracy": "clean accuracy",
        "robust_accuracy": "robust accuracy",
    },
    others={
        "broken": ("What each attack broke", ("network", "norm", "epsilon", "attack", "share")),
        "notes": evaluation.NOTES,
    },
    captions={
        "robust_accuracy.svg": "Accuracy against radius; bars are 95% intervals. Curves of robust networks should lie "
        "above the standard one's within the radius they were trained for.",
    },
    takes="six minutes",
    picture="robust_accuracy.svg",
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
