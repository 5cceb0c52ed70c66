"""The experiments there are: the values `EXPERIMENT` of the modules of `experiments`, found by looking."""

import importlib
import pkgutil

import experiments
from experiments.harness.experiment import Experiment


def every() -> list[Experiment]:
    """All experiments, those without a data set first, then by section of the paper."""
    names = [info.name for info in pkgutil.iter_modules(experiments.__path__) if not info.ispkg]
    modules = [importlib.import_module(f"experiments.{name}") for name in names if not name.startswith("_")]
    found = [module.EXPERIMENT for module in modules if hasattr(module, "EXPERIMENT")]
    return sorted(found, key=lambda one: (one.has_dataset, one.title))
