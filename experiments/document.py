r"""The result tables of the documentation, written from what is committed in `experiments/results`.

    python -m experiments.document            # writes them
    python -m experiments.document --check    # says whether they are as they should be

A record is a directory of a run: `results.json`, and `measurements.npz` from which every table and verdict in it is
computed anew. Two records from before measurements were kept have none: what their tables allow is judged from those,
and said so.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from absl import flags as absl_flags

from experiments import tradeoff
from experiments.harness import claims, correlations, experiment, launch, registry, tables
from experiments.harness.flags import Flags
from experiments.harness.tables import Row
from robgrad import runs

ROOT = Path(__file__).parent
RECORDS, README = ROOT / "results", ROOT.parent / "README.md"
COLUMNS = {
    "": "digits, the toy",
    "digits": "digits, the toy",
    "fashion_mnist": "Fashion-MNIST, small",
    "mnist": "MNIST, small",
    "mnist-paper": "MNIST, paper's size",
}
HEAD = """# Recorded results

Every table below is written by `python -m experiments.document` from the records beside this file, and a test fails
where they differ. A record holds what a run left: `results.json` (settings, versions, commit, tables, claims), figures,
and `measurements.npz`, what was measured of each image, from which tables and verdicts are computed anew.

{rule}
"""


def records() -> list[Path]:
    """The recorded runs of experiments."""
    return sorted(path.parent for path in RECORDS.glob("*/results.json") if path.parent.name != "benchmark")


def judged(path: Path) -> tuple[experiment.Experiment, dict[str, Any], bool]:
    """A record's experiment and results, tables computed anew where measurements were kept; whether they were."""
    results = json.loads((path / "results.json").read_text())
    one = next(one for one in registry.every() if one.name == results["experiment"])
    arrays = runs.read_arrays(path / experiment.MEASUREMENTS)
    if arrays is not None:
        return one, results | tables.plain(experiment.judge(one, config_of(one, results["config"]), arrays)), True
    return one, results | tables.plain({"claims": list(_claims_of_rows(results))}), False


def config_of(one: experiment.Experiment, recorded: Mapping[str, Any]) -> Any:
    """A configuration from what a record says: lists become tuples again."""

    def thawed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {norm: thawed(each) for norm, each in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return one.config(**{name: thawed(value) for name, value in recorded.items()})


def _claims_of_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    """What the rows of an earlier record allow to be judged."""
    rows, settings = results["rows"], SimpleNamespace(**results["config"])
    if results["experiment"] == "manifold_distance":
        yield from _orders_of_rows(rows)
        return
    rows = [row | {"network_seed": 0} for row in rows]
    settings.attributions = tuple(dict.fromkeys(row["attribution"] for row in rows if row["attribution"] != "random"))
    for section, against in (("3.2", "strength"), ("3.3", "accuracy")):
        abscissa = "training strength" if against == "strength" else "test accuracy"
        yield from correlations.claims_of(section, correlations.table_of(settings, rows, against), abscissa)
    yield from tradeoff.ways_out(rows)
    for benchmark in ("roar", "kar"):
        scores = np.array([row["score"] for row in rows if row["benchmark"] == benchmark and row["train_norm"]])
        text = f"{benchmark.upper()}: the score of every network lies above Random's (our test)"
        low, high = scores.min(), scores.max()
        judgement = claims.HOLDS if low > 0 else claims.FAILS if high < 0 else claims.UNTESTED
        ours = f"{low:.3f} to {high:.3f} (scores alone)"
        claim = claims.Claim("3.2", text, "robust networks", "-", "no interval kept")
        yield claims.row(claim, ours, None, None, judgement)


def _orders_of_rows(rows: Sequence[Row]) -> Iterator[Row]:
    """Orders from intervals of each network: they hold where no two neighbours' intervals meet."""
    for analysis in dict.fromkeys(row["analysis_loss"] for row in rows):
        mine = [row for row in rows if row["analysis_loss"] == analysis]
        for norm, loss in dict.fromkeys((row["train_norm"], row["train_loss"]) for row in mine if row["train_norm"]):
            members = [row for row in mine if row["train_norm"] in (None, norm)]
            group = f"{norm}, {loss}; {analysis} analysis"
            for field, text, sign in (
                ("median_distance", "median distance to the manifold falls with strength", 1),
                (
                    "tangent_fraction",
                    "share of the loss gradient along the manifold rises with strength (our measure)",
                    -1,
                ),
            ):
                ends = np.array([[row[f"{field}_low"], row[f"{field}_high"]] for row in members])[::sign]
                gaps = ends[:-1, 0] - ends[1:, 1]
                judgement = claims.HOLDS if np.all(gaps > 0) else claims.UNTESTED
                ours = " > ".join(f"{row[field]:.3g}" for row in members[::sign])
                claim = claims.Claim("2.1", text, group, "-", "10000 images, not paired; one seed")
                yield claims.row(claim, ours, None, None, judgement)


def column_of(results: Mapping[str, Any]) -> str:
    """Which column of the verdicts a record is in."""
    settings = results["config"]
    name = settings.get("dataset", "")
    return COLUMNS.get(f"{name}-{settings['preset']}" if name else "", COLUMNS.get(name, name))


def verdicts() -> str:
    """One row for each claim, a column for each data set; failures first in a cell."""
    cells: dict[tuple[str, str], dict[str, list[str]]] = {}
    for path in records():
        one, results, _ = judged(path)
        every = list(results["claims"])
        if one.name == "roar_kar" and (path / experiment.MEASUREMENTS).exists():
            arrays = runs.read_arrays(path / experiment.MEASUREMENTS)
            assert arrays is not None
            every += experiment.judge(tradeoff.EXPERIMENT, config_of(one, results["config"]), arrays)["claims"]
        for claim in every:
            row = cells.setdefault((claim["section"], claim["claim"]), {})
            row.setdefault(column_of(results), []).append(claim["verdict"])
    headings = ["section", "claim", *dict.fromkeys(COLUMNS.values())]
    rows = [
        {"section": section, "claim": text} | {column: summed(found) for column, found in row.items()}
        for (section, text), row in sorted(cells.items())
    ]
    return tables.text(rows, headings, "github")


def summed(found: Sequence[str]) -> str:
    """Verdicts of groups in a few words, failures first."""
    counts = {mark: found.count(mark) for mark in (claims.FAILS, claims.HOLDS, claims.UNTELLABLE, claims.UNTESTED)}
    said = {claims.UNTESTED: "not tested", claims.FAILS: f"**{claims.FAILS}**"}
    parts = [f"{said.get(mark, mark)} in {count} of {len(found)}" for mark, count in counts.items() if count]
    return said.get(found[0], found[0]) if len(found) == 1 else ", ".join(parts)


def results_page() -> str:
    """`experiments/results/README.md`."""
    parts = [HEAD.format(rule=claims.RULE)]
    for path in records():
        one, results, recomputed = judged(path)
        place, settings = results["environment"], results["config"]
        what = f"{one.title}; data set {settings['dataset']}" if "dataset" in settings else one.title
        parts.append(f"## {path.name}\n")
        note = "" if recomputed else " From before measurements were kept: judged from its rows."
        parts.append(
            f"{what}, preset {settings.get('preset', 'quick')}, seed {settings['seed']}. {place['devices']}, JAX "
            f"{place['jax']}, commit {place['commit']}.{note}\n"
        )
        shown = {name: heading for name, heading in one.columns.items() if name in results["rows"][0]}
        parts.append(tables.text(results["rows"], shown, "github") + "\n")
        parts.append(tables.text(results["claims"], claims.COLUMNS, "github") + "\n")
    return "\n".join(parts)


def readme() -> str:
    """README with its table of verdicts."""
    text = README.read_text()
    block = f"<!-- verdicts -->\n{verdicts()}\n<!-- /verdicts -->"
    return re.sub(r"<!-- verdicts -->.*<!-- /verdicts -->", lambda _: block, text, flags=re.DOTALL)


def work(given: Flags) -> None:
    """Writes the tables, or checks them."""
    wanted = {RECORDS / "README.md": results_page(), README: readme()}
    different = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if given.values.check and different:
        names = ", ".join(str(path.relative_to(ROOT.parent)) for path in different)
        raise absl_flags.Error(f"{names}: not what the records say; run python -m experiments.document")
    for path in different:
        path.write_text(wanted[path])
        launch.show(f"written: {path}")


def program_flags() -> Flags:
    """The program's flags."""
    given = Flags(__doc__ or "")
    given.add("run", "bool", "check", False, "Write nothing; fail if something differs.")
    return given


if __name__ == "__main__":
    launch.program(work, program_flags())
