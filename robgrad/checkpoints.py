"""What a run directory holds, and how it is opened and written so that nothing finished is ever lost.

A run is a directory: `config.json` (what was asked, and where it ran), `results.json` and
`results.csv` (once it has finished), and its figures. Files are replaced, never written in place.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunError(RuntimeError):
    """A run directory that cannot be used; its message is for the user."""


def open_run(workdir: str | os.PathLike, experiment: str, config: Mapping[str, Any], environment: Mapping[str, Any]):
    """Opens a run directory for a configuration, making it if it is new.

    Returns:
      The path, and the contents of `results.json` if the run had finished, else None.

    Raises:
      RunError: if the directory holds a run of another experiment or configuration, or something else,
        or cannot be written. Nothing in it is touched then.
    """
    path = Path(workdir).expanduser()
    asked = json.loads(json.dumps({"experiment": experiment, "config": config}))
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (path / "config.json").exists():
            _check_same(path, json.loads((path / "config.json").read_text()), asked)
        elif any(path.iterdir()):
            raise RunError(f"{path}: expected an empty directory or an earlier run; name another --workdir")
        else:
            write(path / "config.json", json.dumps(asked | {"environment": dict(environment)}, indent=2))
        results = path / "results.json"
        return path, json.loads(results.read_text()) if results.exists() else None
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: cannot be used as a run directory ({error}); name another --workdir") from error


def write(path: Path, contents: str | bytes) -> None:
    """Writes a file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        file.write(contents.encode() if isinstance(contents, str) else contents)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


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
