"""An experiment as one value, which running, the page, `reproduce`, the estimate of time and the flags' help read."""

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import experiments
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row
from experiments.harness.settings.config import Config
from experiments.harness.settings.flags import Flags
from experiments.harness.settings.presets import Presets, made, presets_of
from experiments.harness.training import stages
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims
from robgrad import data

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


def every() -> list[Experiment]:
    """All experiments, those without a data set first, then by section of the paper.

    They are the values `EXPERIMENT` of the modules of `experiments`, found by looking.
    """
    names = [info.name for info in pkgutil.iter_modules(experiments.__path__) if not info.ispkg]
    modules = [importlib.import_module(f"experiments.{name}") for name in names if not name.startswith("_")]
    found = [module.EXPERIMENT for module in modules if hasattr(module, "EXPERIMENT")]
    return sorted(found, key=lambda one: (one.has_dataset, one.title))


def named(name: str) -> Experiment:
    """The experiment of a name."""
    return next(one for one in every() if one.name == name)


def plain_config(configuration: Config) -> dict[str, Any]:
    """A configuration as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(configuration)))


def judge(experiment: Experiment, configuration: Any, arrays: Arrays) -> Tables:
    """All tables of what was measured, `claims` among them."""
    made = experiment.tabulate(configuration, arrays)
    return made | {"claims": claims.judged(experiment.claim(configuration, arrays, made))}
