"""Networks that a user brings to be examined: of a Python file, in whatever library, or of an earlier run."""

import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.settings.config import ConfigError
from robgrad import data, networks, runs
from robgrad.data.calls import logits_of, of_one_image
from robgrad.networks import Network, Variables
from robgrad.networks.pixels import normalised

# In place of a file of weights, where a network has none.
NONE = "-"
# How files of PyTorch's states end.
STATES = (".pt", ".pth", ".safetensors")


class Subject(NamedTuple):
    """A network under examination: its name, and what it is made of."""

    name: str
    network: nn.Module | Network
    variables: Variables

    @property
    def logits_fn(self) -> networks.LogitsFn:
        """The network as a function of one image `[H, W, C]` in [-1, 1]."""
        return networks.logits_fn(self.network, self.variables)


class Pixels(NamedTuple):
    """What is done to an image before a network of a file sees it.

    Attributes:
      low, high: the range that the network takes; None for what its library has, [0, 1] in PyTorch and else [-1, 1].
      mean, std: of the normalisation after it, one for all channels or one each.
    """

    low: float | None
    high: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def checksums(sources: Sequence[str], weights: Sequence[str]) -> tuple[str, ...]:
    """A checksum of each file that the networks come from, so that a changed network is another configuration.

    Raises:
      ConfigError: if one of them is not there.
    """
    files = [Path(one.rpartition(":")[0]).expanduser() for one in sources if _is_file(one)]
    files += [Path(state[0]).expanduser() for one in sources if (state := _state(one))]
    found = []
    for flag, path in [
        *(("network", one) for one in files),
        *(("weights", Path(one).expanduser()) for one in weights if one != NONE),
    ]:
        if not path.is_file():
            raise ConfigError(f"--{flag}={path}: expected a file that is there")
        found.append(f"{path.name} {zlib.crc32(path.read_bytes()):08x}")
    return tuple(found)


def loaded(
    sources: Sequence[str], weights: Sequence[str], pixels: Pixels, image_shape: Sequence[int], classes: int
) -> list[Subject]:
    """The networks of `--network`, each under a name of its own.

    Args:
      sources: `FILE.py:NAME`; the file of a state of PyTorch's, of a family that `networks.of_state` knows, alone or as
        `FILE.pt:FAMILY`; a run's directory for all its networks, or `RUN:NETWORK` for one of them.
      weights: of the networks from files, in their order; or none.
      pixels: what those take.
      image_shape: `[H, W, C]` of the data set.
      classes: that it has.

    Raises:
      ConfigError: if one cannot be loaded, or takes other images or gives other logits than the data set wants.
    """
    files = [one for one in sources if _is_file(one)]
    if weights and len(weights) != len(files):
        raise ConfigError(
            f"--weights: expected a file for each of {len(files)} networks from Python files, got {len(weights)}"
        )
    states = iter([None if one == NONE else one for one in weights] or [None] * len(files))
    found = []
    for source in sources:
        if _is_file(source):
            found.append(_of_file(source, next(states), pixels, tuple(image_shape)))
        elif _state(source):
            found.append(_of_state(source, pixels))
        else:
            found += _of_run(source)
    names = [one.name for one in found]
    found = [
        one._replace(name=f"{one.name}-{index + 1}" if names.count(one.name) > 1 else one.name)
        for index, one in enumerate(found)
    ]
    for one in found:
        _check(one, tuple(image_shape), classes)
    return found


def _of_state(source: str, pixels: Pixels) -> Subject:
    """A residual network that a file of PyTorch's holds the state of."""
    input_range = (0.0, 1.0) if pixels.low is None or pixels.high is None else (pixels.low, pixels.high)
    file, family = _state(source) or (source, None)
    try:
        own = networks.of_state(file, family=family, input_range=input_range, mean=pixels.mean, std=pixels.std)
    except ValueError as error:
        raise ConfigError(f"--network={source}: {error}") from error
    return Subject(Path(file).stem, own.network, own.variables)


def _is_file(source: str) -> bool:
    return source.rpartition(":")[0].endswith(".py")


def _state(source: str) -> tuple[str, str | None] | None:
    """File and family of a state of PyTorch's; None for other sources."""
    file, _, family = source.rpartition(":")
    if file.endswith(STATES):
        return file, family
    return (source, None) if source.endswith(STATES) else None


def _of_run(source: str) -> Iterator[Subject]:
    """All networks of a run, or the one that is named."""
    place, _, wanted = (source, "", "") if Path(source).expanduser().is_dir() else source.rpartition(":")
    run = Path(place).expanduser()
    if not run.is_dir():
        raise ConfigError(
            f"--network={source}: expected FILE.py:NAME, a file of weights, a run's directory, or RUN:NETWORK"
        )
    known: list[str] = []
    for path in runs.stages(run):
        if runs.read_about(path)["kind"] != "classifier":
            continue
        stack = runs.load_classifiers(path)
        known += stack.names
        for index, name in enumerate(stack.names):
            if wanted in ("", name):
                yield Subject(name, stack.network, stack.at(index))
    if not known or (wanted and wanted not in known):
        raise ConfigError(f"--network={source}: expected a run with {wanted or 'networks'}, it has {known or 'none'}")


@lru_cache(maxsize=8)
def _of_file(source: str, weights: str | None, pixels: Pixels, image_shape: tuple[int, ...]) -> Subject:
    """A name of a Python file, called where it builds the network."""
    file, _, name = source.rpartition(":")
    path = Path(file).expanduser()
    try:
        value = _named(path, name)
        value = _built(value, weights)
        network, variables = _as_network(value, pixels, image_shape)
    except ConfigError:
        raise
    except Exception as error:
        # The user's code may raise anything; its own line is what says most, and the next where that ends in a colon.
        first, *more = (str(error).strip() or "no message").splitlines()
        reason = f"{first} {more[0].strip()}" if first.endswith(":") and more else first
        raise ConfigError(f"--network={source}: {type(error).__name__}: {reason}") from error
    return Subject(name if name not in ("build", "network", "net", "model") else path.stem, network, variables)


def _named(path: Path, name: str) -> Any:
    if not path.is_file():
        raise ConfigError(f"--network={path}:{name}: expected a file that is there")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # What the file imports may lie beside it.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        own = [one for one in vars(module) if not one.startswith("_") and not inspect.ismodule(getattr(module, one))]
        raise ConfigError(f"--network={path}:{name}: expected a name that the file defines: {', '.join(own) or 'none'}")
    return getattr(module, name)


def _built(value: Any, weights: str | None) -> Any:
    """A network from what a file names: itself, or what it returns; with its weights where it takes them or is PyTorch.

    A class or function without required parameters is called; one with a parameter `weights` is given their path.
    """
    taken = False
    if callable(value) and not _is_module(value):
        parameters = inspect.signature(value).parameters.values()
        needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
        if weights is not None and "weights" in [one.name for one in parameters]:
            value, taken = value(weights=weights), True
        elif not needed:
            value = value()
    if weights is None or taken:
        return value
    torch = sys.modules.get("torch")
    if not torch or not isinstance(value, torch.nn.Module):
        raise ConfigError(
            f"--weights={weights}: expected a PyTorch module, whose state they are, or a function with a parameter "
            "'weights', which is given their path"
        )
    _load_state(value, weights)
    return value


def _is_module(value: Any) -> bool:
    """Whether it is a network already, whatever calling it would mean."""
    torch, equinox, nnx = (sys.modules.get(name) for name in ("torch", "equinox", "flax.nnx"))
    kinds = [nn.Module, networks.OfOne]
    kinds += [getattr(library, name) for library, name in ((equinox, "Module"), (nnx, "Module")) if library]
    return isinstance(value, (*kinds, *([torch.nn.Module] if torch else [])))


def _load_state(module: Any, weights: str) -> None:
    """A PyTorch module's state from a file."""
    import torch

    kept = module.state_dict()
    state = {name: torch.as_tensor(value) for name, value in networks.read_state(weights).items()}
    module.load_state_dict(
        {name: value.to(kept[name].dtype) if name in kept else value for name, value in state.items()}
    )


def _as_network(value: Any, pixels: Pixels, image_shape: tuple[int, ...]) -> tuple[Network, Variables]:
    """A `Network` of images in [-1, 1], and its variables."""
    torch, equinox, nnx = (sys.modules.get(name) for name in ("torch", "equinox", "flax.nnx"))
    low, high, mean, std = pixels
    if torch and isinstance(value, torch.nn.Module):
        input_range = (0.0, 1.0) if low is None or high is None else (low, high)
        own = networks.of_torch(value, image_shape, input_range=input_range, mean=mean, std=std)
        return networks.of_module(own.network), own.variables
    if isinstance(value, networks.OfOne):
        network, variables = networks.of_module(value.network), value.variables
    elif isinstance(value, tuple) and len(value) == 2:
        network, variables = networks.of_module(value[0]), value[1]
    elif isinstance(value, nn.Module):
        raise ConfigError("expected a linen module with its variables; name a pair (module, variables)")
    elif nnx and isinstance(value, nnx.Module):
        value.eval()
        structure, params, rest = nnx.split(value, nnx.Param, ...)
        variables = {"params": params, "rest": rest}
        network = _evaluated(lambda held, images: nnx.merge(structure, held["params"], held["rest"])(images))
    elif equinox and isinstance(value, equinox.Module):
        params, rest = equinox.partition(value, equinox.is_inexact_array)
        arrays, still = equinox.partition(rest, equinox.is_array)
        variables = {"params": params, "rest": arrays}
        network = _evaluated(
            lambda held, images: jax.vmap(equinox.combine(held["params"], held["rest"], still))(images)
        )
    elif callable(value):
        of_one = of_one_image(value, image_shape)
        # A stack of networks needs an array to count by.
        variables = {"params": {}, "nothing": {"zero": jnp.zeros(())}}
        network = _evaluated(lambda held, images: jax.vmap(of_one)(images))
    else:
        raise ConfigError(f"expected a network, a pair (module, variables), or a function, got {type(value).__name__}")
    if (low is None or high is None) and mean == (0.0,) and std == (1.0,):
        return network, variables
    first, last = (-1.0, 1.0) if low is None or high is None else (low, high)
    shown = normalised(image_shape[-1], data.PIXEL_RANGE, (first, last), mean, std)
    return _evaluated(lambda held, images: network.evaluate(held, shown(images))), variables


def _evaluated(evaluate: Callable[[Variables, jax.Array], jax.Array]) -> Network:
    """A network that is evaluated alone."""

    def init(key: jax.Array, image_shape: Sequence[int]) -> Variables:
        raise ConfigError("expected a network that is not trained here")

    def train(variables: Variables, images: jax.Array, weights: jax.Array) -> tuple[jax.Array, Variables]:
        del weights
        return evaluate(variables, images), variables

    return Network(init, networks.with_fast_convolutions(evaluate), train)


def _check(subject: Subject, image_shape: tuple[int, ...], classes: int) -> None:
    """That a network takes the set's images and gives a logit for each of its classes."""
    try:
        given = logits_of(subject.logits_fn, image_shape)
    except (TypeError, ValueError, data.DataError) as error:
        reason = str(error).strip().splitlines()[0]
        shape = "x".join(map(str, image_shape))
        raise ConfigError(f"--network: {subject.name} does not take images of {shape}: {reason}") from error
    if given.shape != (classes,):
        hint = "; of one logit z make two, 0 and z" if given.shape in ((), (1,)) else ""
        raise ConfigError(
            f"--network: {subject.name}: expected {classes} logits, one for each class of the data set, got shape "
            f"{given.shape}{hint}"
        )


def randomised(key: jax.Array, variables: Variables) -> Variables | None:
    """Variables whose parameters are shuffled, each array in itself: a network that has learnt nothing.

    Adebayo et al. (2018) draw them anew; a shuffled array has the scale of the trained one, whatever its library does
    at the start. None where a network shows no parameters.
    """
    leaves, structure = jax.tree.flatten(variables["params"])
    if not leaves:
        return None
    keys = jax.random.split(key, len(leaves))
    shuffled = [
        jax.random.permutation(one, jnp.ravel(leaf)).reshape(np.shape(leaf))
        for one, leaf in zip(keys, leaves, strict=True)
    ]
    return {**variables, "params": jax.tree.unflatten(structure, shuffled)}
