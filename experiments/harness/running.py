"""An experiment run: begun, continued, or read where it has finished; its files, and its program."""

import csv
import io
import json
import textwrap
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax

from experiments.harness import costs, launch
from experiments.harness.experiment import (
    ANALYSIS,
    MEASUREMENTS,
    REPORT,
    RESULTS,
    Experiment,
    Finished,
    Part,
    judge,
    plain_config,
)
from experiments.harness.pages import report, tables
from experiments.harness.pages.tables import Row
from experiments.harness.settings.config import ConfigError, FittedConfig, TrainingConfig, label
from experiments.harness.settings.flags import Flags
from experiments.harness.settings.options import Options
from experiments.harness.training import stages
from experiments.harness.training.origins import Source
from experiments.harness.training.stages import Run
from robgrad import data, runs


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
            report.write_page(path / experiment.file(REPORT), experiment.title, [(experiment, Finished(path, results))])
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


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    runs.write(path, lines.getvalue())


def show(experiment: Experiment, finished: Finished) -> None:
    """Prints what fits a screen of a run's main table, what was found, and where the rest is."""
    (workdir, results), width = finished, launch.width()
    launch.show(tables.fitting(results["rows"], experiment.columns, width), "")
    for said in report.answers(results):
        launch.show(*textwrap.wrap(said, width, subsequent_indent="    "))
    launch.show(f"\n{report.verdicts(results['claims'])}.")
    launch.show(
        f"Every column is in results.csv, figures and all groups in {experiment.file(REPORT)}, in", str(workdir)
    )


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
    return runs.load_data(values.dataset, values.data_dir, values.image_size)


def workdir_of(experiment: Experiment, given: Flags) -> Path:
    """The directory of a run: the flag's, or one named after what is run."""
    parts = [experiment.base.name]
    if experiment.has_dataset:
        parts += [label(given.values.dataset), given.values.preset]
    return Path(given.values.workdir or f"runs/{'-'.join(parts)}").expanduser()
