"""Recorded runs: what is in `experiments/results`, with every table and verdict computed anew from measurements."""

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from experiments.harness import experiment
from experiments.harness.pages import report, tables
from experiments.harness.pages.tables import Row
from experiments.harness.verdicts import claims, power, simulation
from robgrad import runs

RECORDS = power.RECORDS
COLUMNS = {
    "": "digits (ten seeds; ways to train: three), 2.2's plane",
    "digits-quick": "digits (ten seeds; ways to train: three), 2.2's plane",
    "digits-quick, 20 strengths": "digits, the paper's whole grid (81 networks, three seeds)",
    "shapes-16-quick": "rendered shapes (2.1: five seeds, of a growing training radius; else one)",
    "digits-quick, generated": "images made from digits, five seeds",
    "fashion_mnist-quick": "Fashion-MNIST, small (2.1: five seeds, else one)",
    "mnist-quick": "MNIST, small, one seed",
    "cifar10-quick": "CIFAR-10 (photographs of a JPEG copy), small, three seeds",
}
# Sets that are recorded of a copy which is not exact.
COPIES = {"cifar10": "cifar10, photographs of a JPEG copy"}
_POWER = (
    "Power: the step that {} seeds tell with a chance of {:.0%}, and the seeds that the smallest observed step needs"
)
# Columns of a record's main table that its page shows; all are in `results.json`.
SHOWN = 8
# Rows beyond which a page shows one seed of each network.
LONG = 200
INDEX = """# Recorded results

A record is what a run left: `results.json` (settings, versions, commit, tables, claims), figures, and
`measurements.npz`, what was measured of each image. `python -m experiments.document` computes every table and verdict
anew from the measurements and writes these pages; a test fails where they differ. `--site=DIR` makes web pages of them.

<details><summary>How verdicts are given</summary>

{rule}

</details>

<details><summary>How often they are wrong, and how often they tell</summary>

Simulated, {families:,} families a row and kind of seeds. Where nothing is true:

{wrong}

Where all is true, of eight groups of five networks:

{told}

</details>
"""
SIMULATED = RECORDS / "verdicts.json"


def records() -> list[Path]:
    """The recorded runs of experiments."""
    return sorted(
        path.parent for path in RECORDS.glob("*/results.json") if not path.parent.name.startswith("benchmark")
    )


@cache
def judged(path: Path) -> tuple[experiment.Experiment, dict[str, Any], bool]:
    """A record's experiment and results, tables computed anew where measurements were kept; whether they were."""
    results = json.loads((path / "results.json").read_text())
    one = experiment.named(results["experiment"])
    arrays = runs.read_arrays(path / experiment.MEASUREMENTS)
    if arrays is not None:
        return one, results | tables.plain(experiment.judge(one, config_of(one, results["config"]), arrays)), True
    for row in results["rows"]:
        # Of before AutoAttack.
        row["pgd_accuracy"] = row.pop("robust_accuracy")
    return one, results | {"claims": []}, False


def config_of(one: experiment.Experiment, recorded: Mapping[str, Any]) -> Any:
    """A configuration from what a record says: lists become tuples again."""

    def thawed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {norm: thawed(each) for norm, each in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return one.config(**{name: thawed(value) for name, value in recorded.items()})


def column_of(results: Mapping[str, Any]) -> str:
    """Which column of the verdicts a record is in."""
    settings = results["config"]
    if experiment.named(results["experiment"]).neighbour:
        return f"small sets, {settings['network_seeds']} seeds"
    name = f"{settings['dataset']}-{settings['preset']}" if "dataset" in settings else ""
    if results["experiment"] == "known_manifold" and not settings["dataset"].startswith("shapes"):
        name += ", generated"
    return COLUMNS.get(f"{name}, {settings.get('epsilons')} strengths", COLUMNS.get(name, name))


def readers_of(path: Path, one: experiment.Experiment) -> list[experiment.Experiment]:
    """The experiments that tell of a record's measurements, where it has kept them."""
    if not (path / experiment.MEASUREMENTS).exists():
        return []
    return [other for other in experiment.every() if other.reads == one.name]


@cache
def told(path: Path, name: str) -> dict[str, list[Row]]:
    """The tables that another experiment makes of a record's measurements."""
    other = experiment.named(name)
    arrays, recorded = runs.read_arrays(path / experiment.MEASUREMENTS), judged(path)[1]["config"]
    assert arrays is not None
    return tables.plain(experiment.judge(other, config_of(other, recorded), arrays))


def cells(papers: bool, neighbours: bool) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Verdicts by section and claim, published or ours, and by column."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for path in records():
        one, results, _ = judged(path)
        if one.neighbour is not neighbours:
            continue
        every = list(results["claims"])
        for other in readers_of(path, one):
            every += told(path, other.name)["claims"]
        for claim in [claim for claim in every if claims.is_papers(claim) is papers]:
            row = found.setdefault((claim["section"], claim["claim"]), {})
            row.setdefault(column_of(results), []).append(claim["verdict"])
    return dict(sorted(found.items()))


def verdicts(papers: bool, neighbours: bool) -> str:
    """One row for each claim, a column for each data set; failures first in a cell."""
    found = cells(papers, neighbours)
    used = {column for row in found.values() for column in row}
    every = dict.fromkeys([*COLUMNS.values(), *sorted(used)])
    headings = ["section", "claim", *(column for column in every if column in used)]
    bold = lambda verdict: claims.summed(verdict).replace(claims.FAILS, f"**{claims.FAILS}**")  # noqa: E731
    rows = [
        {"section": section, "claim": text} | {column: bold(verdict) for column, verdict in row.items()}
        for (section, text), row in found.items()
    ]
    return markdown(rows, headings)


def markdown(rows: list[Row], columns: Any) -> str:
    """A table for a page, without the spaces that line its columns up."""
    return re.sub(r"-{3,}", "--", re.sub(r" {2,}", " ", tables.text(rows, columns, "github")))


def index_page(failures: str) -> str:
    """`experiments/results/README.md`: verdicts by claim, what does not hold, and the records, each by its answer."""
    simulated = json.loads(SIMULATED.read_text())
    wrong, true = simulation.shown(simulated["rows"])
    tables_of_rule = {"wrong": markdown(wrong, simulation.WRONG), "told": markdown(true, simulation.TOLD)}
    parts = [
        INDEX.format(rule=claims.RULE, families=simulated["families"], **tables_of_rule),
        "## What was published\n",
        verdicts(True, False) + "\n",
        "Three later works, each on a small set of its own:\n",
        verdicts(True, True) + "\n",
        "## What we asked beyond what was published\n",
        verdicts(False, False) + "\n",
        verdicts(False, True) + "\n",
        "## What does not hold\n",
        failures + "\n",
        "## The records\n",
    ]
    for path in records():
        one, results, recomputed = judged(path)
        parts.append(f"- [{path.name}]({path.name}/README.md): {about(one, results, recomputed)}")
    return "\n".join(parts) + "\n"


def about(one: experiment.Experiment, results: Mapping[str, Any], recomputed: bool) -> str:
    """What a record is of, in a line."""
    settings = results["config"]
    seeds = settings.get("network_seeds", 1)
    counted = f", {seeds} seed{'s' if seeds > 1 else ''} of each network" if "network_seeds" in settings else ""
    name = settings.get("dataset", "")
    of = f"{one.title}; {COPIES.get(name, name)}{counted}" if name else one.title
    return of if recomputed else f"{of}. From before measurements were kept: nothing is judged by it"


def record_page(path: Path) -> str:
    """A record's own page: its answers, its figure, its main table; all else folded."""
    one, results, recomputed = judged(path)
    place, settings = results["environment"], results["config"]
    parts = [f"# {path.name}\n", f"{about(one, results, recomputed)}.\n"]
    found = report.answers(results)
    parts += ["".join(f"- {answer}\n" for answer in found)] if found else []
    if one.picture and (path / one.picture).exists():
        parts.append(f"![{_caption(one)}]({one.picture})\n\n{_caption(one)}\n")
    shown = {name: heading for name, heading in one.columns.items() if name in results["rows"][0]}
    rows = results["rows"]
    if len(rows) > LONG and "network_seed" in shown:
        rows = [row for row in rows if not row["network_seed"]]
        parts.append(f"The first seed of each network; {len(results['rows'])} rows are in `results.json`.\n")
    parts.append(markdown(rows, dict([*shown.items()][:SHOWN])) + "\n")
    every = list(results["claims"])
    others = [(caption, results.get(name) or [], columns) for name, (caption, columns) in one.others.items()]
    for other in readers_of(path, one):
        further = told(path, other.name)
        every += further["claims"]
        others += [(caption, further[name], columns) for name, (caption, columns) in other.others.items()]
    folded = [("Every claim and group", every, claims.COLUMNS), *(others if recomputed else [])]
    seeds = settings.get("network_seeds", 1)
    folded.append((_POWER.format(seeds, power.WANTED), power.rows_of(every, seeds), power.COLUMNS))
    for caption, rows, columns in folded:
        if rows:
            parts.append(f"<details><summary>{caption}</summary>\n\n{markdown(rows, columns)}\n\n</details>\n")
    pictures = sorted(file.name for file in path.glob("*.svg") if file.name != one.picture)
    parts += [f"Other figures: {', '.join(f'[{name}]({name})' for name in pictures)}.\n"] if pictures else []
    whose = f", {place['convolutions']}" if "convolutions" in place else ""
    parts.append(
        f"Preset {settings.get('preset', 'quick')}, seed {settings['seed']}. {place['devices']}, JAX {place['jax']}"
        f"{whose}, commit {place['commit']}{_origin(place)}. Every column and setting is in `results.json`.\n"
    )
    return "\n".join(parts)


def _caption(one: experiment.Experiment) -> str:
    return next(text for pattern, text in one.captions.items() if fnmatch(one.picture, pattern)).format(
        Path(one.picture).stem.rpartition("_")[2]
    )


def _origin(environment: Mapping[str, str]) -> str:
    return f"; networks {environment['networks']}" if "networks" in environment else ""


def redraw() -> None:
    """Draws the figures of every record that has kept measurements."""
    for path in records():
        one, results, recomputed = judged(path)
        if not recomputed:
            continue
        arrays = runs.read_arrays(path / experiment.MEASUREMENTS)
        assert arrays is not None
        for other in (one, *readers_of(path, one)):
            configuration = config_of(other, results["config"])
            other.draw_all(path, configuration, arrays, experiment.judge(other, configuration, arrays))
