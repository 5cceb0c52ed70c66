r"""The whole paper from one command: every experiment, on shared networks, and one page about all of it.

    python -m experiments.reproduce                       # digits, some 35 minutes on 2 cores
    python -m experiments.reproduce --all                 # the neighbours too, 12 minutes more
    python -m experiments.reproduce --dry_run             # what it would take here
    python -m experiments.reproduce --preset=paper        # mnist, fashion_mnist, cifar10: a large GPU, a day

Experiments come in the order of the paper's sections, the toy of section 2.2 first; each takes the networks that
one before it has trained alike. The page is there from the first experiment on.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.harness import costs, experiment, launch, running
from experiments.harness.experiment import Experiment
from experiments.harness.pages import report
from experiments.harness.settings import config
from experiments.harness.settings.flags import Flags
from experiments.harness.training.origins import Source
from robgrad import data, runs

NAME = "reproduce"
TITLE = "Bridging Adversarial Robustness and Gradient Interpretability, reproduced"


def datasets_of(one: Experiment, given: Flags) -> list[str]:
    """The names of the data sets of an experiment: those of the flags, or the paper's."""
    values = given.values
    if one.neighbour and values.preset == "quick":
        return [values.dataset if values["dataset"].present else one.dataset]
    if not one.neighbour and values.datasets is not None:
        return list(values.datasets)
    if values.preset == "paper" and not given.values["dataset"].present:
        return list(one.paper_datasets)
    return [values.dataset]


def parts_of(given: Flags, experiments: Sequence[Experiment], root: Path) -> list[experiment.Part]:
    """What is to be run; everything that can be refused is refused here, before any work.

    Args:
      given: the flags.
      experiments: in their order.
      root: directory of all runs.

    Raises:
      RunError: if a directory holds something else.
      ConfigError: if a setting does not fit.
    """
    sets: dict[str, data.Dataset] = {}
    parts = []
    for one in experiments:
        for name in datasets_of(one, given) if one.has_dataset else [None]:
            if name and name not in sets:
                sets[name] = runs.load_data(
                    name, given.values.data_dir, given.values.image_size if data.is_folder(name) else None
                )
            dataset = sets[name] if name else None
            if dataset is not None and one.config.needs_masks and not data.marks.has_masks(dataset):
                # What is about masks keeps to its own set where the one that is named has none.
                name, dataset = one.dataset, data.load(one.dataset, given.values.data_dir)
            directory = one.base.name + (f"-{config.label(name)}" if name else "")
            part = experiment.Part(one, root / directory, dataset, one.named(dataset, given))
            runs.check_run(part.workdir, one.base.name, experiment.plain_config(part.config))
            parts.append(part)
    labels = [config.label(name) for name in sets]
    if len({*labels}) < len(labels):
        raise flags.IllegalFlagValueError(f"--datasets: expected different names, got {', '.join(labels)}")
    return parts


def root_of(given: Flags) -> Path:
    """The directory of all runs."""
    values = given.values
    names = values.datasets or (["paper"] if _is_paper(given) else [values.dataset])
    default = f"runs/{NAME}-{'-'.join(map(config.label, names))}" + ("" if _is_paper(given) else f"-{values.preset}")
    return Path(values.workdir or default).expanduser()


def _is_paper(given: Flags) -> bool:
    return given.values.preset == "paper" and given.values.datasets is None and not given.values["dataset"].present


def work(given: Flags) -> None:
    """Runs all experiments of the flags, or says what they would take."""
    chosen = [one for one in experiment.every() if not one.alone and (given.values.all or not one.neighbour)]
    run_all(given, NAME, TITLE, chosen, root_of(given))


def run_all(given: Flags, name: str, title: str, experiments: Sequence[Experiment], root: Path) -> None:
    """Runs experiments one after another into directories below one, with a page of all."""
    parts = parts_of(given, experiments, root)
    if given.values.dry_run:
        costs.dry_run(parts, given.options())
        return
    # Each part knows its own configuration, so that others may join.
    runs.open_run(root, name, {}, launch.environment())
    finished: list[tuple[Experiment, experiment.Finished]] = []
    changed = not runs.exists(root / experiment.REPORT)
    for index, part in enumerate(parts):
        source = source_of(part, parts[:index], given)
        changed |= not runs.exists(part.workdir / part.experiment.file(experiment.RESULTS))
        done = running.run(part.experiment, part.workdir, part.config, given.options(), part.dataset, source)
        finished.append((part.experiment, done))
        if changed:
            report.write_page(root / experiment.REPORT, title, finished)
        what = part.experiment.title + (f": {part.dataset.name}" if part.dataset else "")
        launch.show(f"{what}: {report.verdicts(done.results['claims'])} ({root / experiment.REPORT})")


def source_of(part: experiment.Part, before: list[experiment.Part], given: Flags) -> Source | None:
    """An earlier run on the same data set that has trained networks, or the one that the flags name."""
    if part.dataset is None:
        return None
    earlier = [one for one in before if one.dataset is part.dataset and one.workdir != part.workdir]
    if earlier:
        return Source(earlier[0].workdir, strict=False)
    source = given.options().networks_from
    return Source(source) if source else None


def program_flags() -> Flags:
    """All experiments' flags, and which data sets."""
    every = [one for one in experiment.every() if not one.alone]
    kinds = list(dict.fromkeys(one.config for one in every))
    given = Flags(__doc__ or "", kinds, next(one.presets for one in every if one.has_dataset))
    text = "Data sets, instead of --dataset. Default with --preset=paper: those that the paper has."
    given.add("run", "list", "datasets", None, text)
    given.add(
        "run", "bool", "all", False, "The neighbours too: other works on the same question, on sets of their own."
    )
    given.add("run", "bool", "dry_run", False, costs.DRY_RUN)
    return given


if __name__ == "__main__":
    launch.program(work, program_flags())
