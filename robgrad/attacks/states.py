"""The state of an evaluation as one file, from which it goes on after an interruption."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# What an evaluation at one radius has reached, by name.
State = Mapping[str, np.ndarray]


def read(path: str | os.PathLike) -> dict[str, State]:
    """The states in a file, by radius; none where there is no file yet.

    Raises:
      ValueError: if the file is something else, or damaged.
    """
    file = Path(path).expanduser()
    found: dict[str, dict[str, np.ndarray]] = {}
    if not file.exists():
        return {}
    try:
        # Reading checks the checksum that a zip archive has of each array.
        with np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                radius, _, field = name.rpartition("/")
                found.setdefault(radius, {})[field] = arrays[name]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"{file}: expected the state of an evaluation, got something else or a damaged file"
        ) from error
    if any("identity" not in state for state in found.values()):
        raise ValueError(f"{file}: expected the state of an evaluation, got another archive of arrays")
    return dict(found)


def write(path: str | os.PathLike, states: Mapping[str, State]) -> None:
    """Writes states by radius; the file is the old one or the new one, whole, whenever the program ends."""
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{radius}/{name}": values for radius, state in states.items() for name, values in state.items()}
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
