"""Run directories: what they hold, how they are written, and what is loaded from them."""

from robgrad.runs.checkpoints import (
    DamagedError,
    FormatError,
    finished,
    load_arrays,
    load_classifiers,
    load_manifold,
    load_network,
    read_about,
    save_stack,
    stages,
    states_of,
)
from robgrad.runs.classifiers import Classifiers, joined
from robgrad.runs.directory import (
    RunError,
    check_run,
    exists,
    open_run,
    read_arrays,
    remove,
    write,
    write_arrays,
    writing,
)
from robgrad.runs.generated import decoded, generated, load_data

__all__ = [
    "Classifiers",
    "DamagedError",
    "FormatError",
    "RunError",
    "check_run",
    "decoded",
    "exists",
    "finished",
    "generated",
    "joined",
    "load_arrays",
    "load_classifiers",
    "load_data",
    "load_manifold",
    "load_network",
    "open_run",
    "read_about",
    "read_arrays",
    "remove",
    "save_stack",
    "stages",
    "states_of",
    "write",
    "write_arrays",
    "writing",
]
