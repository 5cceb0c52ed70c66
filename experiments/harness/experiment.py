"""An experiment as one value, and what is done with it: running, resuming, its files, its page.

Running, the page, `reproduce`, the estimate of time and the flags' help read that value; none names an experiment.
"""

import csv
import dataclasses
import importlib
import io
import json
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness import costs, launch
from experiments.harness.pages import figures, glossary, html, tables
from experiments.harness.pages.tables import Row
from experiments.harness.settings.config import Config, ConfigError, FittedConfig, TrainingConfig, label
from experiments.harness.settings.flags import Flags
from experiments.harness.settings.options import Options
from experiments.harness.settings.presets import Presets, made, presets_of
from experiments.harness.training import stages
from experiments.harness.training.stages import Run, Source
from experiments.harness.verdicts import claims
from robgrad import data, runs

Arrays = dict[str, np.ndarray]
Tables = dict[str, list[Row]]
REPORT, RESULTS, MEASUREMENTS = "report.html", "results.json", "measurements.npz"
_CURVES = {
    "held_out.svg": "Accuracy on training images held out after each epoch, under ten steps of PGD where the network "
    "was trained against an attack; the best epoch is circled."
}
ANALYSIS = "analysis"  # what a measurement under way keeps


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What an experiment is.

    Everything that it prints, draws and claims is made of what it has measured, so that a later rule can judge an
    earlier run.

    Attributes:
      name: of its module.
      title: begins with the paper's section.
      question: what it asks, and how one sees the answer.
      config: type of its configuration.
      measure: the work; a run to named arrays.
      tabulate: configuration and arrays to tables of rows by name, `rows` the main one.
      claim: configuration, arrays and tables to rows of `claims.COLUMNS`.
      draw: writes figures into a directory, of configuration, arrays and tables.
      columns: of `rows` that are printed, by name, with their headings.
      others: tables beside `rows` on the page: caption and columns by name.
      captions: of figures by the pattern of their file's name; `{}` stands for the name's last part.
      estimate: what its stages would take: configuration, data set, options and the configurations of runs whose
        networks it may take, to rows of `costs.COLUMNS`.
      paper_datasets: the data sets that the paper has for it; none for one without data sets.
      reads: the name of the experiment whose measurements it tells of, where it makes none of its own.
      takes: minutes on two cores, in words.
      picture: the figure to look at first.
      dataset: its program's default.
      neighbour: whether it is about another work than the paper, so that `reproduce` has it with `--all` alone.
      alone: whether it is about networks or trainings that no paper here has, so that `reproduce` never has it.
    """

    name: str
    title: str
    question: str
    config: type[Config]
    measure: Callable[[Run], Arrays]
    tabulate: Callable[[Any, Arrays], Tables]
    claim: Callable[[Any, Arrays, Tables], Iterable[Row]]
    draw: Callable[[Path, Any, Arrays, Tables], None]
    columns: Mapping[str, str]
    captions: Mapping[str, str]
    estimate: Callable[[Any, Any, Options, Sequence[Any]], Iterator[Row]]
    others: Mapping[str, tuple[str, Sequence[str]]] = dataclasses.field(default_factory=dict)
    paper_datasets: tuple[str, ...] = ()
    reads: str = ""
    takes: str = ""
    picture: str = ""
    dataset: str = "digits"
    neighbour: bool = False
    alone: bool = False

    @property
    def base(self) -> "Experiment":
        """The experiment whose run it shares: itself, or the one it reads."""
        return importlib.import_module(f"experiments.{self.reads}").EXPERIMENT if self.reads else self

    @property
    def presets(self) -> Presets:
        """Its settings by preset and data set; those of the experiment that it reads."""
        return presets_of(self.base.name)

    @property
    def has_dataset(self) -> bool:
        """Whether it is about a data set."""
        return "dataset" in {field.name for field in dataclasses.fields(self.config)}

    @property
    def figures(self) -> Mapping[str, str]:
        """Captions of all its figures, by pattern of file name; what it reads of another it does not draw."""
        return self.captions if self.reads else {**self.captions, **_CURVES}

    def draw_all(self, workdir: Path, configuration: Any, arrays: Arrays, judged: Tables) -> None:
        """Draws its figures, and the course of trainings that looked for their best epoch."""
        self.draw(workdir, configuration, arrays, judged)
        curves = {name: values for name, values in arrays.items() if name.startswith(f"{stages.HELD_OUT}/")}
        if curves and not self.reads:
            figures.course_figure(workdir / next(iter(_CURVES)), curves)

    def file(self, name: str) -> str:
        """What the experiment calls a file that an experiment it reads has too."""
        return name if not self.reads else f"{self.name}{Path(name).suffix}"

    def named(self, dataset: data.Dataset | None, flags: Flags):
        """Its configuration by a program's flags."""
        given = flags.given(self.config)
        return made(self.config, self.presets, flags.common(), given, dataset)


class Finished(NamedTuple):
    """A finished run: its directory, and what `results.json` says."""

    workdir: Path
    results: dict[str, Any]


class Part(NamedTuple):
    """One experiment on one data set, or on none: its directory and configuration."""

    experiment: Experiment
    workdir: Path
    dataset: data.Dataset | None
    config: Any


def plain_config(configuration: Config) -> dict[str, Any]:
    """A configuration as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(configuration)))


def run(
    experiment: Experiment,
    workdir: str | Path,
    configuration: Any,
    options: Options | None = None,
    dataset: data.Dataset | None = None,
    source: Source | None = None,
) -> Finished:
    """Runs, continues or reads an experiment; from a program, a notebook, or for another experiment.

    Args:
      experiment: what to run.
      workdir: its directory, new or that of the same run.
      configuration: of the experiment's type.
      options: how it is carried out.
      dataset: the data set, where it has one.
      source: another run whose networks may be used; that of the options where None.

    Raises:
      RunError: if the directory holds something else, or cannot be written.
      DivergedError: if training diverges.
      StoppedError: if it was asked to stop, and has saved.
    """
    options = options or Options()
    source = Source(options.networks_from) if source is None and options.networks_from else source
    # Compiled programs depend on the precision, so that runs of different ones may share a process.
    with jax.default_matmul_precision(configuration.matmul_precision):
        if experiment.reads:
            run(experiment.base, workdir, configuration, options, dataset, source)
        environment, asked = launch.environment(), plain_config(configuration)
        if experiment.has_dataset and dataset is not None:
            environment |= _origin(source)
            if isinstance(configuration, FittedConfig):
                environment |= {"mesh": stages.mesh_in_words(configuration, dataset)}
        path, _ = runs.open_run(workdir, experiment.base.name, asked, environment)
        results = _read(path / experiment.file(RESULTS))
        if results is None:
            assert dataset is not None or not experiment.has_dataset
            given = Run(path, configuration, options, dataset, source)  # type: ignore[arg-type]
            results = _computed(experiment, given, environment)
        else:
            _redrawn(experiment, path, configuration, results)
            if not experiment.reads:
                launch.show(f"finished already: {path}")
        if not runs.exists(path / experiment.file(REPORT)):
            write_page(path / experiment.file(REPORT), experiment.title, [(experiment, Finished(path, results))])
    return Finished(path, results)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text()) if runs.exists(path) else None
    except ValueError as error:
        raise runs.RunError(f"{path}: damaged ({error}); remove it and start again: it is made anew") from error


def _computed(experiment: Experiment, given: Run, environment: Mapping[str, Any]) -> dict[str, Any]:
    began, path = time.monotonic(), given.workdir
    arrays = runs.read_arrays(path / MEASUREMENTS)
    if arrays is None:
        arrays = experiment.measure(given) | stages.curves_of(path)
        runs.write_arrays(path / MEASUREMENTS, arrays)
        runs.remove(path / ANALYSIS)
    judged = judge(experiment, given.config, arrays)
    experiment.draw_all(path, given.config, arrays, judged)
    drawn = [file.name for file in path.glob("*.svg") if any(fnmatch(file.name, one) for one in experiment.figures)]
    seconds = time.monotonic() - began
    results = {
        "experiment": experiment.name,
        "config": plain_config(given.config),
        "environment": dict(environment),
        "seconds": seconds,
        "figures": sorted(drawn),
        **tables.plain(judged),
    }
    _write_csv(path / experiment.file("results.csv"), results["rows"])
    # Last, since its presence says that the run has finished.
    runs.write(path / experiment.file(RESULTS), json.dumps(results, indent=2, allow_nan=False))
    return results


def _origin(source: Source | None) -> dict[str, str]:
    """The commit of the run whose networks may be used."""
    path = source.run / "config.json" if source else None
    if path is None or not path.exists():
        return {}
    return {
        "networks": f"as far as they agree, of a run at commit {json.loads(path.read_text())['environment']['commit']}"
    }


def _redrawn(experiment: Experiment, path: Path, configuration: Any, results: Mapping[str, Any]) -> None:
    """Draws a finished run's figures again where one is missing, and has its page made anew."""
    if all([runs.exists(path / name) for name in results.get("figures", ())]):
        return
    arrays = runs.read_arrays(path / MEASUREMENTS)
    if arrays is None:
        return
    experiment.draw_all(path, configuration, arrays, judge(experiment, configuration, arrays))
    if jax.process_index() == 0:
        (path / experiment.file(REPORT)).unlink(missing_ok=True)


def judge(experiment: Experiment, configuration: Any, arrays: Arrays) -> Tables:
    """All tables of what was measured, `claims` among them."""
    made = experiment.tabulate(configuration, arrays)
    return made | {"claims": claims.judged(experiment.claim(configuration, arrays, made))}


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    runs.write(path, lines.getvalue())


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
    more = [html.Table(caption, results[name], columns, {}, glossary.COLUMNS) for name, (caption, columns) in others]
    settings = {"config": results["config"], "environment": results["environment"]}
    folded = html.Code(json.dumps(settings, indent=2), "every setting and version")
    title = experiment.title + (f": {results['config']['dataset']}" if experiment.has_dataset else "")
    return html.Section(title, [experiment.question, _what(results), *shown, every, *more, folded])


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
        body.append(html.Section("What we asked beyond that", ours))
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


def show(experiment: Experiment, finished: Finished) -> None:
    """Prints what fits a screen of a run's main table, what was found, and where the rest is."""
    (workdir, results), width = finished, launch.width()
    launch.show(tables.fitting(results["rows"], experiment.columns, width), "")
    for said in answers(results):
        launch.show(*textwrap.wrap(said, width, subsequent_indent="    "))
    launch.show(f"\n{verdicts(results['claims'])}.")
    launch.show(
        f"Every column is in results.csv, figures and all groups in {experiment.file(REPORT)}, in", str(workdir)
    )


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
    return found


def main(experiment: Experiment, about: str) -> None:
    """The program of one experiment; `about` is its module's docstring."""
    given = Flags(about, [experiment.config], experiment.presets, experiment.dataset)
    given.add("run", "bool", "dry_run", False, costs.DRY_RUN)

    def work(given: Flags) -> None:
        dataset = loaded(given.values) if experiment.has_dataset else None
        configuration = experiment.named(dataset, given)
        trains = issubclass(experiment.config, FittedConfig) and not issubclass(experiment.config, TrainingConfig)
        if given.values.networks_from and trains:
            raise ConfigError("--networks_from: this experiment trains its networks in ways of its own; leave it out")
        if given.values.dry_run:
            costs.dry_run(
                [Part(experiment.base, workdir_of(experiment, given), dataset, configuration)], given.options()
            )
            return
        finished = run(experiment, workdir_of(experiment, given), configuration, given.options(), dataset)
        show(experiment, finished)

    launch.program(work, given)


def loaded(values: Any) -> data.Dataset:
    """The data set that the flags ask for."""
    return data.load(values.dataset, values.data_dir, values.image_size)


def workdir_of(experiment: Experiment, given: Flags) -> Path:
    """The directory of a run: the flag's, or one named after what is run."""
    parts = [experiment.base.name]
    if experiment.has_dataset:
        parts += [label(given.values.dataset), given.values.preset]
    return Path(given.values.workdir or f"runs/{'-'.join(parts)}").expanduser()


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
