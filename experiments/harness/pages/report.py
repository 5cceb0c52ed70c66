"""The page of finished runs: what was found first, then each run with its figures, tables and settings."""

import json
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from experiments.harness.experiment import Experiment, Finished
from experiments.harness.pages import glossary, html
from experiments.harness.pages.tables import Row
from experiments.harness.verdicts import claims
from robgrad import runs


def pictured(experiment: Experiment, finished: Finished, rest: bool = False) -> list[html.Figure]:
    """The figure to look at first, where there is one; or all others."""
    shown = []
    for pattern, caption in experiment.figures.items():
        paths = sorted(path for path in finished.workdir.glob("*.svg") if fnmatch(path.name, pattern))
        wanted = [path for path in paths if (path.name == experiment.picture) != rest]
        shown += [html.Figure(path.read_bytes(), caption.format(path.stem.rpartition("_")[2])) for path in wanted]
    return shown


def section(experiment: Experiment, finished: Finished, alone: bool = True) -> html.Section:
    """An experiment's section of a page; where it is alone its first figure stands above."""
    results = finished.results
    shown: list[Any] = [] if alone else [*pictured(experiment, finished)]
    shown += pictured(experiment, finished, rest=True)
    every = html.Table("Every column is in results.csv", results["rows"], experiment.columns, {}, glossary.COLUMNS)
    others = [(name, rest) for name, rest in experiment.others.items() if results.get(name)]
    more = [
        html.Table(caption, results[name], _filled(results[name], columns), {}, glossary.COLUMNS)
        for name, (caption, columns) in others
    ]
    settings = {"config": results["config"], "environment": results["environment"]}
    folded = html.Code(json.dumps(settings, indent=2), "every setting and version")
    title = experiment.title + (f": {results['config']['dataset']}" if experiment.has_dataset else "")
    return html.Section(title, [experiment.question, _what(results), *shown, every, *more, folded])


def _filled(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """The columns in which a row says something."""
    return [name for name in columns if any(row.get(name) is not None for row in rows)]


def write_page(path: Path, title: str, parts: Sequence[tuple[Experiment, Finished]]) -> None:
    """Writes one page of finished runs: claims first, then run by run."""
    every = [claim for _, finished in parts for claim in finished.results["claims"]]
    papers, ours = (folded([row for row in every if claims.is_papers(row) is one]) for one in (True, False))
    rule = html.Code(textwrap.fill(claims.RULE, 72), "How verdicts are given")
    found: list[html.Part] = []
    if len(parts) == 1:
        found = [*answers(parts[0][1].results), *pictured(*parts[0])]
    body = [html.Section("What was found", [*found, f"{verdicts(every)}.", *papers, rule])]
    if ours:
        body.append(html.Section("What we asked beyond that" if papers else "What we asked", ours))
    body += [section(*part, alone=len(parts) == 1) for part in parts]
    if module := getattr(sys.modules["__main__"].__spec__, "name", None):
        again = f"{Path(sys.executable).name} -m {module} {shlex.join(sys.argv[1:])}".strip()
        body.append(
            html.Section("Run it again", ["Started again, a finished run prints its tables.", html.Code(again)])
        )
    runs.write(path, html.document(title, body))


def folded(rows: Sequence[Row]) -> list[html.Fold]:
    """A line for each claim with its verdicts, what fails first; groups, one click on a heading sorts, beneath it."""
    every: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        every.setdefault((row["section"], row["claim"]), []).append(row)
    columns = {name: heading for name, heading in claims.COLUMNS.items() if name not in ("section", "claim")}
    folds = []
    for (section, text), groups in every.items():
        found = [row["verdict"] for row in groups]
        table = html.Table("", groups, columns, claims.MARKS)
        line = f"{section}: {text}" if section != "-" else text
        folds.append(html.Fold(line, claims.summed(found), claims.MARKS[claims.worst(found)], table))
    order = ["bad", "open", "good"]
    return sorted(folds, key=lambda fold: order.index(fold.mark))


def verdicts(rows: Sequence[Row]) -> str:
    """How many claims have each verdict."""
    counts = {mark: sum(claim["verdict"] == mark for claim in rows) for mark in claims.MARKS}
    counted = ", ".join(f"'{mark}' {count}" for mark, count in counts.items() if count)
    return f"Of {len(rows)} claims: {counted}" if rows else "No claims"


def answers(results: Mapping[str, Any]) -> list[str]:
    """What a run says in words, and a sentence for each claim: its verdicts, and the numbers of its first group."""
    families: dict[str, list[Row]] = {}
    for row in results["claims"]:
        families.setdefault(row["claim"], []).append(row)
    found = [f"{row['network']}: {row['in_words']}" for row in results.get("words", ())]
    for text, groups in families.items():
        # Not the words that say what a row's interval is of.
        numbers = "; ".join(part for part in str(groups[0]["ours"]).split("; ") if not part.startswith("smallest"))
        of = f"{groups[0]['group']}: " if len(groups) > 1 else ""
        verdicts = claims.summed([row["verdict"] for row in groups])
        found.append(f"{verdicts}: {text} ({of}{numbers})")
    against: dict[str, list[str]] = {}
    for row in results.get("notes", ()):
        against.setdefault(row["note"], []).append(row["network"])
    for note, networks in against.items():
        names = [*dict.fromkeys(networks)]
        of = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        found.append(f"Against the robust accuracy of {of}: {note}")
    return found


def _what(results: Mapping[str, Any]) -> str:
    """What was run and on what, in a sentence or two."""
    asked, place = results["config"], results["environment"]
    on = f"On {place['devices']}, JAX {place['jax']}, commit {place['commit']}"
    if seconds := results.get("seconds"):
        on += f"; the session that finished it took {seconds / 60:.1f} minutes"
    if "dataset" not in asked:
        return f"Seed {asked['seed']}. {on}."
    return (
        f"Data set {asked['dataset']}, preset {asked['preset']}, seed {asked['seed']}: {asked['train_examples']:,} "
        f"training and {asked['test_examples']:,} test images. {on}."
    )
