"""Training stages saved as they go, and trained networks saved and loaded, with Orbax.

The states of a stage under way lie in a run's `checkpoints/STAGE`, a finished stack of networks in
`networks/STAGE` as two items: `variables`, and `about`, which says what they are. Directories are renamed into
place when they are whole. Arrays are stored by name and shape; to load them runs no code from the files. A checksum is
kept with both, and what is loaded is believed only if it has the same.
"""

import contextlib
import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from robgrad import stacking
from robgrad.manifolds import KINDS, Manifold
from robgrad.networks import LogitsFn, init, network_named
from robgrad.runs.classifiers import Classifiers
from robgrad.runs.directory import RunError, exists, first_line, of_file_system, writing

FORMAT = 2
KEPT = 2
# Bytes of a file at which the next is begun, and of a part of an array: a run's directory can travel in small pieces.
PIECE = 2**25


class FormatError(RunError):
    """Trained networks that can be read, but are of another format or kind than expected."""


class DamagedError(RunError):
    """Something kept whose files are damaged: it may be put aside and made again."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tells damaged files from those that cannot be read now, each by one line.

    Raises:
      DamagedError: where the files are not what they were written as.
      RunError: where the file system refuses; nothing is wrong with what is kept then.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)
        if of_file_system(error) and not missing:
            raise RunError(
                f"{path}: cannot be read now ({first_line(error)}); nothing was changed: mend that and start again"
            ) from error
        if missing or isinstance(error, ValueError | KeyError | EOFError | AssertionError | TypeError | AttributeError):
            raise DamagedError(f"{path}: cannot be read ({first_line(error)})") from error
        raise


@contextlib.contextmanager
def states_of(directory: Path, start) -> Iterator[tuple[Any, Callable[[Any], None]]]:
    """Opens the checkpoints of a training stage.

    Args:
      directory: where they are kept, the last two.
      start: stack of states as the stage begins, each with a field `step`.

    Yields:
      The states to go on from, those of the newest whole checkpoint or else `start`, and `save(states)`,
      which copies them and writes in the background. A checkpoint that cannot be read is said and put aside.

    Raises:
      RunError: if a checkpoint cannot be written.
    """
    directory = directory.absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
    with writing(directory):
        manager = ocp.CheckpointManager(directory, options=options)

    def save(states) -> None:
        with writing(directory):
            step = int(states.step[0])
            if step not in manager.all_steps():
                copy = _plain(states)
                _reserve(directory, copy)
                manager.save(step, args=_in_pieces(copy), force=True, custom_metadata={"checksum": checksum(copy)})

    try:
        yield _newest(manager, directory, start), save
    finally:
        with writing(directory):
            manager.close()


def _newest(manager: ocp.CheckpointManager, directory: Path, start):
    for step in sorted(manager.all_steps(), reverse=True):
        restored, damage = None, None
        try:
            with reading(directory / str(step)):
                template = jax.tree.map(np.zeros_like, _plain(start))
                kinds = ocp.checkpoint_utils.construct_restore_args(template)
                restored = manager.restore(step, args=ocp.args.PyTreeRestore(template, restore_args=kinds))
                chex.assert_trees_all_equal_shapes_and_dtypes(restored, template)
                kept = manager.metadata(step).custom_metadata or {}
                _check_sum(directory / str(step), kept.get("checksum"), restored)
        except DamagedError as error:
            damage = error
        if restored is None or stacking.agree(damage is not None).any():
            _say(f"{damage or directory / str(step)}; going on from an earlier state")
            _put_aside(directory / str(step), directory.with_name(f"{directory.name}.unreadable-{step}"))
            manager.reload()
            continue
        key = jax.random.wrap_key_data(jnp.asarray(restored.key))
        return jax.tree.map(jnp.asarray, restored._replace(key=key))
    return start


def checksum(tree) -> str | None:
    """SHA-256 of a tree of arrays: names, types, shapes and values; None where other processes hold a part of them."""
    if jax.process_count() > 1:
        return None
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        values = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _check_sum(path: Path, kept: str | None, tree) -> None:
    """Raises `DamagedError` unless a tree is what was saved; what was saved without a checksum is believed."""
    if kept is not None and checksum(tree) not in (None, kept):
        raise DamagedError(f"{path}: its values are not those that were saved (the checksum differs)")


def _sum_of_about(about: Mapping[str, Any]) -> str:
    """The checksum of a description, but for the checksum itself."""
    said = {name: value for name, value in about.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _plain(states):
    """A copy that training, which gives its buffers away, does not touch; keys as their data."""
    copy = np.array if jax.process_count() == 1 else jnp.copy
    return jax.tree.map(copy, states._replace(key=jax.random.key_data(states.key)))


def save_stack(path: Path, variables, about: Mapping[str, Any]) -> None:
    """Saves a finished stack of variables and a plain description of it, whole or not at all."""
    held = jax.tree.map(np.asarray, variables)
    said = {"format": FORMAT, **about, "variables": checksum(held)}
    with writing(path), _checkpointer() as checkpointer:
        items = ocp.args.Composite(
            variables=_in_pieces(held),
            about=ocp.args.JsonSave({**said, "checksum": _sum_of_about(said)}),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        _reserve(path.parent, variables)
        checkpointer.save(path.absolute(), items, force=True)


def load_classifiers(path: str | os.PathLike) -> Classifiers:
    """Loads one stack of classifiers, a directory in a run's `networks`.

    Raises:
      RunError: if it is not one, or cannot be read.
    """
    about = read_about(Path(path), "classifier")
    network = network_named(about["network"], about["image_shape"], about["classes"])
    shapes = jax.eval_shape(lambda: init(network, jax.random.key(0), about["image_shape"]))
    variables = _variables(Path(path), shapes, len(about["networks"]))
    return Classifiers(network, variables, tuple(one["network"] for one in about["networks"]), about)


def load_network(run: str | os.PathLike, name: str) -> LogitsFn:
    """Loads a network from a run directory as a function of one image `[H, W, C]` in [-1, 1].

    Args:
      run: the directory of a run of any experiment that trained networks.
      name: for instance `"standard"` or `"l2-xent-2"`.

    Raises:
      RunError: if there is no such network, naming those there are, or it cannot be read.
      ValueError: from the function, if it is given anything but one image of the size it was trained on.

    Example:
      `logits_fn = runs.load_network("runs/manifold_distance-digits-quick", "l2-xent-2")`
    """
    known: list[str] = []
    for path in stages(run):
        if (about := read_about(path))["kind"] != "classifier":
            continue
        names = [network["network"] for network in about["networks"]]
        if name in names:
            return _of_shape(load_classifiers(path).logits_fn(name), tuple(about["image_shape"]), name)
        known += names
    expected = ", ".join(sorted(known)) or "a run that trained some"
    raise RunError(f"{run}: expected a network of {expected}, got '{name}'")


def _of_shape(own: LogitsFn, shape: tuple[int, ...], name: str) -> LogitsFn:
    def checked(image):
        if jnp.shape(image) != shape:
            raise ValueError(f"{name}: expected one image of shape {list(shape)}, got {list(jnp.shape(image))}")
        return own(image)

    return checked


def load_arrays(path: str | os.PathLike) -> tuple[Mapping[str, Any], Any]:
    """Loads what a manifold is made of, a directory in a run's `networks`: what it says of itself, its arrays.

    Raises:
      RunError: if it holds no manifold, or cannot be read.
    """
    about = read_about(Path(path), "manifold")
    shapes = KINDS[about["manifold"]].shapes(about["image_shape"], about["training"])
    return about, stacking.replica(_variables(Path(path), shapes, 1), 0)


def load_manifold(run: str | os.PathLike, kind: str | None = None) -> Manifold:
    """Loads an image manifold from a run directory, images `[H, W, C]` in [-1, 1]: of a kind, or the first there is.

    Raises:
      RunError: if the run has none such, or it cannot be read.
    """
    for path in stages(run):
        if (about := read_about(path))["kind"] == "manifold" and kind in (None, about["manifold"]):
            return KINDS[about["manifold"]].manifold(
                about["image_shape"], load_arrays(path)[1], None, about["training"]
            )
    raise RunError(f"{run}: expected a run that has fitted a manifold{f' {kind}' if kind else ''}, found none")


def stages(run: str | os.PathLike) -> Sequence[Path]:
    """The finished stacks of a run directory."""
    directory = Path(run).expanduser() / "networks"
    if not directory.is_dir():
        raise RunError(f"{run}: expected a run directory with trained networks, found none in {directory}")
    return sorted(path for path in directory.iterdir() if path.is_dir() and "." not in path.name)


def finished(path: Path, load: Callable[[Path], Any]) -> Any | None:
    """What `load` makes of a finished stage; None if it is missing, or damaged, which is said."""
    if not exists(path):
        return None
    loaded, damage = None, None
    try:
        loaded = load(path)
    except DamagedError as error:
        damage = error
    # All processes go the same way: what one cannot read, none has.
    if stacking.agree(damage is not None).any():
        _say(f"{damage or path}: put aside, doing this stage again")
        _put_aside(path, path.with_name(f"{path.name}.unreadable"))
        return None
    return loaded


def _put_aside(path: Path, place: Path) -> None:
    """Moves what is damaged out of the way, beside what was moved before: it may be read yet, another day."""
    if jax.process_index() == 0:
        places = (place if not count else place.with_name(f"{place.name}.{count}") for count in itertools.count())
        path.rename(next(one for one in places if not one.exists()))


def read_about(path: Path, kind: str | None = None) -> dict[str, Any]:
    """What a finished stack says of itself: `format`, `kind`, `image_shape`, how it was trained, its networks.

    Raises:
      RunError: if there is none, or it is of another format or kind.
    """
    with reading(path), _checkpointer() as checkpointer:
        about = checkpointer.restore(path.absolute(), ocp.args.Composite(about=ocp.args.JsonRestore())).about
    if about.get("checksum", "") not in ("", _sum_of_about(about)):
        raise DamagedError(f"{path}: what it says of itself is not what was saved (the checksum differs)")
    if about.get("format") != FORMAT or kind not in (None, about.get("kind")):
        found = f"format {about.get('format')}, {about.get('kind')}"
        raise FormatError(f"{path}: expected format {FORMAT}, {kind or 'any kind'}, got {found}")
    return about


def _variables(path: Path, shapes, replicas: int):
    template = jax.tree.map(lambda leaf: np.zeros((replicas, *leaf.shape), leaf.dtype), shapes)
    with reading(path), _checkpointer() as checkpointer:
        items = ocp.args.Composite(variables=ocp.args.StandardRestore(template), about=ocp.args.JsonRestore())
        restored = checkpointer.restore(path.absolute(), items)
        _check_sum(path, restored.about.get("variables"), restored.variables)
        return jax.tree.map(jnp.asarray, restored.variables)


def _in_pieces(tree) -> ocp.args.PyTreeSave:
    """What saves a tree in files of about `PIECE` bytes, twice that at most."""
    parts = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE // 2), tree)
    return ocp.args.PyTreeSave(tree, parts, ocdbt_target_data_file_size=PIECE)


def _reserve(directory: Path, tree) -> None:
    """Raises `OSError` unless the disk takes a file of this size now: Orbax finds out halfway, and noisily."""
    with tempfile.TemporaryFile(dir=directory) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, sum(leaf.nbytes for leaf in jax.tree.leaves(tree))))


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _say(message: str) -> None:
    print(message, file=sys.stderr)
