"""The state of an evaluation as one file, from which it goes on after an interruption."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import jax
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


def named(function: Any) -> str:
    """A function's name and a checksum of what it was built with, which tells functions of one builder apart."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name.replace('.<locals>', '')} {zlib.crc32(_described(function, frozenset()).encode()):08x}"


def _described(value: Any, above: frozenset[int]) -> str:
    """Numbers, texts, arrays and functions that a function holds, in words that are the same in every process."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return repr(value)
    if id(value) in above:
        return "itself"
    inner = partial(_described, above=above | {id(value)})
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{value.shape}{zlib.crc32(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{inner(key)}: {inner(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"{type(value).__name__}({', '.join(map(inner, value))})"
    if isinstance(value, partial):
        return inner((value.func, value.args, value.keywords))
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{value.__qualname__}{value.__code__.co_code.hex()}{inner([value.__code__.co_consts, held])}"
    if isinstance(value, CodeType):
        return value.co_code.hex() + inner(value.co_consts)
    return f"{type(value).__qualname__}{inner(getattr(value, '__dict__', {}))}"


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
