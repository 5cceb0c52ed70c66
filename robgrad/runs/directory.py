"""What a run directory holds, and how it is written so that nothing finished is lost and nothing half-written is read.

A run is a directory:

    config.json        what was asked, and where it ran first
    checkpoints/STAGE  states of a stage under way (Orbax, the last two), removed when it has finished
    networks/STAGE     a finished stack of networks (Orbax): `variables`, and `about`, which says what
    results.json       once the run has finished; with it `results.csv`, `measurements.npz` and figures

Files are replaced, never written in place, and directories renamed into place when they are whole. Arrays
are stored by name and shape; to load them runs no code from the files.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robgrad import stacking
from robgrad.data.tfds import DAMAGE


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


def check_run(workdir: str | os.PathLike, experiment: str, config: Mapping[str, Any]) -> None:
    """Raises what `open_run` would raise of a directory's contents, and touches nothing; a new one is fine."""
    path = Path(workdir).expanduser()
    if path.exists():
        _contents(path, json.loads(json.dumps({"experiment": experiment, "config": config})))


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
        if _contents(path, asked):
            write(path / "config.json", json.dumps(asked | {"environment": dict(environment)}, indent=2))
        results = path / "results.json"
        return path, _read(results) if results.exists() else None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be used as a run directory ({error}); name another --workdir") from error


def _contents(path: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a directory is new; raises if it holds anything but a run of this experiment and configuration."""
    try:
        if (path / "config.json").exists():
            _check_same(path, _read(path / "config.json"), asked)
            return False
        others = any(file.suffix != ".partial" for file in path.iterdir())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be used as a run directory ({error}); name another --workdir") from error
    if others:
        raise RunError(f"{path}: expected an empty directory or an earlier run; name another --workdir")
    return True


def _read(file: Path) -> Mapping[str, Any]:
    """What a run wrote of itself; raises if the file holds anything else."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RunError(f"{file}: expected what a run wrote there, whole, found something else; name another --workdir")
    return found


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
    """Turns what the file system says, by itself or through Orbax, into one line; other errors pass."""
    try:
        yield
    except Exception as error:
        if not of_file_system(error):
            raise
        raise RunError(
            f"{path}: cannot be written ({first_line(error)}); make room or name another --workdir, then "
            "start the same command again: it goes on from the last whole checkpoint"
        ) from error


_FILE_SYSTEM = [
    os.strerror(code)
    for code in (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EIO)
]


def of_file_system(error: Exception) -> bool:
    """Whether an error is the file system's own; Orbax and TensorStore pass its words on in errors of theirs."""
    return isinstance(error, OSError) or any(words in str(error) for words in (*_FILE_SYSTEM, "RESOURCE_EXHAUSTED"))


def exists(path: Path) -> bool:
    """Whether a file exists, as the first process sees it: all must go the same way."""
    return bool(stacking.agree(path.exists())[0, 0])


def remove(directory: Path) -> None:
    """Removes a directory that is of no more use; does nothing in any process but the first."""
    if not jax.process_index():
        shutil.rmtree(directory, ignore_errors=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as one `.npz` file, an archive with a checksum of each array and one of what there is."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = _contents_of(archive)
    write(path, file.getvalue())


def _contents_of(archive: zipfile.ZipFile) -> bytes:
    """A checksum of an archive's names, sizes and checksums."""
    held = sorted((one.filename, one.file_size, one.CRC) for one in archive.infolist())
    return hashlib.sha256(repr(held).encode()).hexdigest().encode()


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Reads what `write_arrays` wrote; None where there is no such file, or it is damaged.

    Raises:
      RunError: if a process cannot see what the first one sees.
    """
    arrays = None
    damage = tuple(kind for kind in DAMAGE if kind is not OSError)
    try:
        with contextlib.suppress(FileNotFoundError, *damage), np.load(path, allow_pickle=False) as stored:
            # An archive from before there were checksums of contents has no comment.
            if stored.zip.comment in (b"", _contents_of(stored.zip)) and stored.zip.testzip() is None:
                arrays = dict(stored)
    except OSError as error:
        # A damaged archive can point outside of itself.
        arrays = None
        if error.errno != errno.EINVAL:
            raise RunError(f"{path}: cannot be read now ({first_line(error)}); mend that and start again") from error
    whole = stacking.agree(arrays is not None)[:, 0]
    if whole[0] and not whole.all():
        raise RunError(f"{path}: not every process can read it; expected a directory that all of them share")
    return arrays if whole[0] else None


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
        one, other = old.get(name), new.get(name)
        if one != other:
            if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
                # Of long lists what differs.
                one, other = zip(*(pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]), strict=True)
                one, other = (", ".join(map(str, values)) for values in (one, other))
            raise RunError(
                f"{path}: holds a run with {name} = {one}, asked for {other}; "
                "name another --workdir, or ask for the same to continue it"
            )
