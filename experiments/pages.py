"""The page that an experiment leaves: what was run and on what, claims, verdicts, figures, tables."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from experiments import claims, launch
from robgrad import page, report, runs

PAGE = "report.html"


class Part(NamedTuple):
    """What one experiment puts on a page: figures by file name, each pattern with a caption, and tables of its rows."""

    title: str
    question: str
    captions: Mapping[str, str]
    tables: Sequence[page.Table]
    claims: Sequence[report.Row]


def section(part: Part, workdir: Path, results: Mapping[str, Any]) -> page.Section:
    """An experiment's section of a page, from its run directory and results."""
    figures: list[Any] = []
    for pattern, caption in part.captions.items():
        paths = sorted(path for path in workdir.glob("*.png") if fnmatch(path.name, pattern))
        figures += [page.Figure(path.read_bytes(), caption.format(path.stem.rpartition("_")[2])) for path in paths]
    settings = {"config": results["config"], "environment": results["environment"]}
    folded = page.Code(json.dumps(settings, indent=2), "every setting and version")
    return page.Section(part.title, [part.question, _what(results), *figures, *part.tables, folded])


def write(path: Path, title: str, parts: Sequence[tuple[Part, Path, Mapping[str, Any]]]) -> None:
    """Writes one page of the parts, each with its run directory and results: claims first, then part by part."""
    every = [claim for part, *_ in parts for claim in part.claims]
    caption = "Claims of the paper, click a heading to sort"
    again = f"{Path(sys.executable).name} -m {_module()} {shlex.join(sys.argv[1:])}".strip()
    table = page.Table(caption, every, claims.COLUMNS, claims.MARKS)
    body = [page.Section("What the paper claims, and what was found", [f"{verdicts(every)}.", table, claims.RULE])]
    body += [section(*part) for part in parts]
    body.append(page.Section("Run it again", ["Started again, a finished run prints its tables.", page.Code(again)]))
    runs.write(path, page.document(title, body))


def once(
    workdir: Path,
    experiment: str,
    title: str,
    config: Mapping[str, Any],
    part_of: Callable[[Mapping[str, Any]], Part],
    compute: Callable[[Path, Mapping[str, str]], dict[str, Any]],
) -> tuple[Path, dict[str, Any]]:
    """Opens a run, computes it from directory and environment unless it has finished, and leaves its page.

    Returns the directory and the results.
    """
    place = launch.environment()
    workdir, results = runs.open_run(workdir, experiment, config, place)
    if results is None:
        results = compute(workdir, place)
    else:
        launch.show(f"finished already: {workdir}")
    if not (workdir / PAGE).exists():
        write(workdir / PAGE, title, [(part_of(results), workdir, results)])
    return workdir, results


def verdicts(found: Sequence[report.Row]) -> str:
    """How many claims have each verdict."""
    counts = [sum(claim["verdict"] == mark for claim in found) for mark in claims.MARKS]
    return "Of {} claims {} hold, {} do not hold, {} are not tested at this size".format(len(found), *counts)


def show(workdir: Path, results: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Prints a run's rows, and where the rest is."""
    launch.show(report.table(results["rows"], columns), f"\nresults, figures and {PAGE}: {workdir}")


def _module() -> str:
    return getattr(sys.modules["__main__"].__spec__, "name", None) or "experiments.reproduce"


def _what(results: Mapping[str, Any]) -> str:
    """What was run and on what, in a sentence or two."""
    config, place = results["config"], results["environment"]
    on = f"On {place['devices']}, JAX {place['jax']}, commit {place['commit']}"
    if seconds := results.get("seconds"):
        on += f"; the session that finished it took {seconds / 60:.1f} minutes"
    if "dataset" not in config:
        return f"Seed {config['seed']}, {config['repeats']} repeats of {config['points']} points a class. {on}."
    return (
        f"Data set {config['dataset']}, preset {config['preset']}, seed {config['seed']}: {config['train_examples']:,} "
        f"training and {config['test_examples']:,} test images. {on}."
    )
