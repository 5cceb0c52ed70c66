"""What a run directory holds, and how it is written so that nothing finished is lost and nothing half-written is read.

A run is a directory:

    config.json        what was asked, and where it ran first
    checkpoints/STAGE  states of a stage under way (Orbax, the last two), removed when it has finished
    networks/STAGE     a finished stack of networks (Orbax): `params`, and `about`, which says what they are
    results.json       once the run has finished; with it `results.csv`, `measurements.npz` and figures

Files are replaced, never written in place, and directories renamed into place when they are whole. Arrays
are stored by name and shape; to load them runs no code from the files.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from robgrad import stacking


class RunError(RuntimeError):
    """A run directory that cannot be used; its message is for the user."""


def open_run(workdir: str | os.PathLike, experiment: str, config: Mapping[str, Any], environment: Mapping[str, Any]):
    """Opens a run directory for a configuration, making it if it is new.

    Of several processes only the first writes.

    Returns:
      The path, and the contents of `results.json` if the run had finished, else None.

    Raises:
      RunError: if the directory holds a run of another experiment or configuration, or something else,
        or cannot be written. Nothing in it is touched then.
    """
    if jax.process_count() > 1:
        return _open_together(workdir, experiment, config, environment)
    return _open(workdir, experiment, config, environment)


def _open_together(*arguments):
    """The first process opens the directory, then the others, who find it made; if it cannot, none goes on."""
    opened, failed = None, None
    if jax.process_index() == 0:
        try:
            opened = _open(*arguments)
        except RunError as error:
            failed = error
    if stacking.agree(failed is not None)[0, 0]:
        raise failed or RunError(f"{arguments[0]}: the first process could not open it, see its message")
    return opened or _open(*arguments)


def _open(workdir, experiment: str, config: Mapping[str, Any], environment: Mapping[str, Any]):
    path = Path(workdir).expanduser()
    asked = json.loads(json.dumps({"experiment": experiment, "config": config}))
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (path / "config.json").exists():
            _check_same(path, json.loads((path / "config.json").read_text()), asked)
        elif any(file.suffix != ".partial" for file in path.iterdir()):
            raise RunError(f"{path}: expected an empty directory or an earlier run; name another --workdir")
        else:
            write(path / "config.json", json.dumps(asked | {"environment": dict(environment)}, indent=2))
        results = path / "results.json"
        return path, json.loads(results.read_text()) if results.exists() else None
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: cannot be used as a run directory ({error}); name another --workdir") from error


def write(path: Path, contents: str | bytes) -> None:
    """Writes a file whole or not at all; does nothing in any process but the first.

    Raises:
      RunError: if it cannot be written.
    """
    if jax.process_index():
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            try:
                file.write(contents.encode() if isinstance(contents, str) else contents)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.unlink(file.name)
                raise
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system and Orbax raise on a full or read-only disk into one line."""
    try:
        yield
    except Exception as error:
        raise RunError(
            f"{path}: cannot be written ({first_line(error)}); make room or name another --workdir, then "
            "start the same command again: it goes on from the last whole checkpoint"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of what an error says, cut to a screen's width or two."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _check_same(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if found.get("experiment") != asked["experiment"]:
        raise RunError(
            f"{path}: expected a run of {asked['experiment']}, found one of {found.get('experiment')}; "
            "name another --workdir"
        )
    old, new = found.get("config", {}), asked["config"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise RunError(
                f"{path}: holds a run with {name} = {old.get(name)}, asked for {new.get(name)}; "
                "name another --workdir, or ask for the same to continue it"
            )
