r"""The result tables of the documentation, written from what is committed in `experiments/results`.

    python -m experiments.document            # writes them
    python -m experiments.document --check    # says whether they are as they should be
    python -m experiments.document --figures  # draws every record's figures, too

A record is a directory of a run: `results.json`, and `measurements.npz` from which every table and verdict in it is
computed anew. Two records from before measurements were kept have none: their tables are shown, and nothing is judged
by them.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from experiments.benchmark import suites
from experiments.harness import claims, experiment, findings, launch, registry, tables
from experiments.harness.flags import Flags
from experiments.harness.tables import Row
from robgrad import runs

ROOT = Path(__file__).parent
RECORDS, README, SPEED = ROOT / "results", ROOT.parent / "README.md", ROOT / "benchmark" / "README.md"
COLUMNS = {
    "": "digits (2.1 and robustness: ten seeds, else one), the toy",
    "digits-quick": "digits (2.1 and robustness: ten seeds, else one), the toy",
    "shapes-16-quick": "rendered shapes (2.1: five seeds, else one)",
    "digits-quick, generated": "images made from digits, five seeds",
    "fashion_mnist-quick": "Fashion-MNIST, small, one seed",
    "mnist-quick": "MNIST, small, one seed",
}
HEAD = """# Recorded results

Every table below is written by `python -m experiments.document` from the records beside this file, and a test fails
where they differ. A record holds what a run left: `results.json` (settings, versions, commit, tables, claims), figures,
and `measurements.npz`, what was measured of each image, from which tables and verdicts are computed anew.

{rule}
"""


def records() -> list[Path]:
    """The recorded runs of experiments."""
    return sorted(
        path.parent for path in RECORDS.glob("*/results.json") if not path.parent.name.startswith("benchmark")
    )


@cache
def judged(path: Path) -> tuple[experiment.Experiment, dict[str, Any], bool]:
    """A record's experiment and results, tables computed anew where measurements were kept; whether they were."""
    results = json.loads((path / "results.json").read_text())
    one = next(one for one in registry.every() if one.name == results["experiment"])
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
    if next(one for one in registry.every() if one.name == results["experiment"]).neighbour:
        return f"small sets, {settings['network_seeds']} seeds"
    name = f"{settings['dataset']}-{settings['preset']}" if "dataset" in settings else ""
    if results["experiment"] == "known_manifold" and not settings["dataset"].startswith("shapes"):
        name += ", generated"
    return COLUMNS.get(name, name)


def readers_of(path: Path, one: experiment.Experiment) -> list[experiment.Experiment]:
    """The experiments that tell of a record's measurements, where it has kept them."""
    if not (path / experiment.MEASUREMENTS).exists():
        return []
    return [other for other in registry.every() if other.reads is one]


@cache
def told(path: Path, name: str) -> dict[str, list[Row]]:
    """The tables that another experiment makes of a record's measurements."""
    other = next(one for one in registry.every() if one.name == name)
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
    return tables.text(rows, headings, "github")


def failures(most: int) -> str:
    """What does not hold anywhere, published or asked by us."""
    found: dict[str, dict[str, list[str]]] = {}
    for papers in (True, False):
        for neighbours in (False, True):
            found |= {text: row for (_, text), row in cells(papers, neighbours).items()}
    return findings.failures(found, most)


def results_of(name: str) -> dict[str, Any]:
    """A record's results by its name, tables computed anew."""
    return judged(RECORDS / name)[1]


def results_page() -> str:
    """`experiments/results/README.md`."""
    parts = [HEAD.format(rule=claims.RULE)]
    parts += [
        "## What was published\n",
        verdicts(True, False) + "\n",
        "Three later works, each on a small set of its own:\n",
        verdicts(True, True) + "\n",
        "## What we asked beyond what was published\n",
        verdicts(False, False) + "\n",
        verdicts(False, True) + "\n",
        "## What does not hold\n",
        failures(1000) + "\n",
    ]
    for path in records():
        one, results, recomputed = judged(path)
        place, settings = results["environment"], results["config"]
        what = f"{one.title}; data set {settings['dataset']}" if "dataset" in settings else one.title
        parts.append(f"## {path.name}\n")
        note = "" if recomputed else " From before measurements were kept: nothing is judged by it."
        parts.append(
            f"{what}, preset {settings.get('preset', 'quick')}, seed {settings['seed']}. {place['devices']}, JAX "
            f"{place['jax']}, commit {place['commit']}{_origin(place)}.{note}\n"
        )
        shown = {name: heading for name, heading in one.columns.items() if name in results["rows"][0]}
        parts.append(tables.text(results["rows"], shown, "github") + "\n")
        for name, (caption, columns) in one.others.items():
            if results.get(name) and recomputed:
                parts.append(f"{caption}:\n\n{tables.text(results[name], columns, 'github')}\n")
        every = list(results["claims"])
        for other in readers_of(path, one):
            further = told(path, other.name)
            every += further["claims"]
            for name, (caption, columns) in other.others.items():
                parts.append(f"{caption}:\n\n{tables.text(further[name], columns, 'github')}\n")
        parts.append(tables.text(every, claims.COLUMNS, "github") + "\n")
    return "\n".join(parts)


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
            other.draw(path, configuration, arrays, experiment.judge(other, configuration, arrays))


def readme() -> str:
    """README with its answers, its table of findings, and what fails."""
    text = README.read_text()
    made = {
        "answers": findings.answers(results_of),
        "findings": findings.table(results_of),
        "failures": failures(5),
    }
    for name, block in made.items():
        block = f"<!-- {name} -->\n{block}\n<!-- /{name} -->"
        head, _, rest = text.partition(f"<!-- {name} -->")
        text = head + block + rest.partition(f"<!-- /{name} -->")[2]
    return text


def speed() -> str:
    """`experiments/benchmark/README.md` with the tables of each recorded run of the benchmark."""
    records = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("benchmark*/results.json"))]
    block = "\n\n".join(["<!-- speed -->", *map(_of_benchmark, records), "<!-- /speed -->"])
    return re.sub(r"<!-- speed -->.*<!-- /speed -->", lambda _: block, SPEED.read_text(), flags=re.DOTALL)


def _of_benchmark(results: dict[str, Any]) -> str:
    """One run: targets, each variant's time as a ratio to robgrad's, where robgrad is behind, and growth."""
    rows: dict[tuple, Row] = {}
    for row in results["rows"]:
        if row["suite"] in suites.COMPARED and row["variant"] != "robgrad":
            place = (row["suite"], row["network"], row["task"])
            ratio = f"{row['ratio']:.2f}" if row["equal_work"] else "gives something else"
            named = dict(zip(("suite", "network", "task"), place, strict=True))
            rows.setdefault(place, named)[row["variant"]] = ratio
    variants = dict.fromkeys(name for row in rows.values() for name in row)
    table = tables.text(list(rows.values()), list(variants), "github")
    behind = [
        f"- {row['suite']}, {row['network']}, {row['task']}: {name} takes {ratio} of robgrad's time"
        for row in rows.values()
        for name, ratio in row.items()
        if re.fullmatch(r"0\.\d+", ratio)
    ]
    aimed = []
    for row in results["against_the_best"]:
        wanted = suites.target(row["suite"], row["network"], row["task"])
        met = "-" if wanted is None else "met" if row["ratio"] >= wanted else "**missed**"
        aimed.append(row | {"target": wanted, "met": met})
    goals = tables.text(aimed, ("suite", "network", "task", "best_peer", "ratio", "target", "met"), "github")
    place = results["environment"]
    where = f"Commit {place['commit']}, {place['devices']}{_of_processor(place)}, JAX {place['jax']}; a large float32 "
    where += f"product reaches {results['peak_flops'] / 1e9:.0f} GFLOP/s there. {results.get('note', '')}".rstrip()
    parts = [where]
    if aimed:
        parts += ["Against the fastest float32 peer of each task, and what is aimed at:", goals]
    if rows:
        parts += ["All contenders:", table]
        parts += ["Where robgrad is behind:", "\n".join(behind)] if behind else ["robgrad is behind nowhere."]
    if grown := results.get("growth"):
        parts += ["Growth with size, as exponents (1 is linear):", tables.text(grown, tuple(grown[0]), "github")]
    return "\n\n".join(parts)


def _of_processor(environment: Mapping[str, str]) -> str:
    return f" ({environment['processor']})" if "processor" in environment else ""


def work(given: Flags) -> None:
    """Writes the tables, or checks them; draws figures where that is asked for."""
    if given.values.figures:
        redraw()
    wanted = {RECORDS / "README.md": results_page(), README: readme(), SPEED: speed()}
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
    given.add("run", "bool", "figures", False, "Draw the figures of every record with measurements anew.")
    return given


if __name__ == "__main__":
    launch.program(work, program_flags())
