"""A classifier as the rest of robgrad sees it: variables, logits in evaluation, logits in training.

To add a network is to write a linen module and name it in `NETWORKS`; a `Network` can also be made by hand, of
functions from any library.
"""

import inspect
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robgrad import stacking
from robgrad.networks.classifiers import classifier_for
from robgrad.networks.convolutions import with_fast_convolutions
from robgrad.networks.residual import preact_resnet_18, wide_resnet

LogitsFn = Callable[[Array], Array]
Variables = dict[str, Any]
# What to sum the gradients of devices and to update the parameters costs, in passes over a batch (measured).
UPDATE = 14


class Network(NamedTuple):
    """A classifier of batches of images `[B, H, W, C]` in [-1, 1].

    Its variables are a dict of collections: `params`, which training descends, and any others, such as running
    statistics, which its training mode moves.

    Attributes:
      init: `(key, image_shape)` to variables.
      evaluate: `(variables, images)` to logits `[B, C]`; no example sees another.
        Plain `lax` convolutions are many times faster in loops on a CPU through `with_fast_convolutions`.
      train: `(variables, images, weights)` to logits and the variables with what has moved; `weights` `[B]` are 1
        for an example and 0 for padding. May sum over the mapped axis `stacking.DATA`.
    """

    init: Callable[[Array, Sequence[int]], Variables]
    evaluate: Callable[[Variables, Array], Array]
    train: Callable[[Variables, Array, Array], tuple[Array, Variables]]


# What modules call the switch between training and evaluation, and what it is in training.
FLAGS = {
    **dict.fromkeys(("train", "training", "is_training", "is_train"), True),
    **dict.fromkeys(("deterministic", "use_running_average", "inference", "is_eval"), False),
}
# The collection that holds the key of dropout and other noise of a module in training.
STREAMS = "streams"


def _flags(module: nn.Module) -> dict[str, bool]:
    """The switches that a module's call has, as they are in training.

    Raises:
      ValueError: if the call needs something that is none of them.
    """
    flags, unknown = {}, []
    for name, parameter in list(inspect.signature(type(module).__call__).parameters.items())[2:]:
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and name in FLAGS:
            flags[name] = FLAGS[name]
        elif named and name != "weights" and (parameter.default is parameter.empty or _is_switch(parameter.default)):
            unknown.append((name, parameter.default is parameter.empty))
    for name, needed in unknown:
        said = (
            f"{type(module).__name__}: expected a call of images and of switches named {', '.join(FLAGS)}, got the "
            f"parameter '{name}'; rename it, or make a networks.Network of functions"
        )
        if needed:
            raise ValueError(said)
        warnings.warn(f"{said}: it keeps its default until then", stacklevel=3)
    return flags


def _is_switch(default: Any) -> bool:
    return isinstance(default, bool)


def _initial(module: nn.Module, key: Array, image_shape: tuple[int, ...], flags: tuple[tuple[str, bool], ...]) -> Any:
    at_rest: dict[str, Any] = {name: not value for name, value in flags}
    return module.init(key, jnp.zeros((1, *image_shape)), **at_rest)


# One program, where operation by operation each would be compiled.
_compiled = jax.jit(_initial, static_argnums=(0, 2, 3))


def _draws(module: nn.Module, variables: Variables, flags: dict[str, bool], image_shape: Sequence[int]) -> bool:
    """Whether a module asks for random numbers in training."""
    moving = [name for name in variables if name != "params"]
    given: dict[str, Any] = dict(flags) | ({"mutable": moving} if moving else {})
    try:
        jax.eval_shape(lambda images: module.apply(variables, images, **given), jnp.zeros((1, *image_shape)))
    except flax.errors.InvalidRngError:
        return True
    return False


def of_module(module: nn.Module | Network) -> Network:
    """The `Network` of a linen module that maps batches of images to logits; a `Network` passes as it is.

    In training the module is given `weights` if its `__call__` has a parameter of that name (as robgrad's own
    modules with batch norm), and every switch of `FLAGS` that it has, for instance `train=True` or
    `deterministic=False`; collections other than `params` are mutable then, and read-only in evaluation. Statistics of
    modules that know no `weights` are averaged over devices, padding included. A module that draws random numbers in
    training, for instance for dropout, has a key among its variables, the collection `STREAMS`, which each step moves.

    Raises:
      ValueError: for an NNX module, and for a call that needs an argument that is none of those.
    """
    if isinstance(module, Network):
        return module
    nnx = sys.modules.get("flax.nnx")
    if nnx and isinstance(module, nnx.Module):
        raise ValueError(
            f"expected a linen module or a Network, got the NNX module {type(module).__name__}, which holds variables "
            "of its own; give networks.of_nnx(lambda rngs: ...), which builds it afresh"
        )
    weighted = "weights" in inspect.signature(type(module).__call__).parameters
    flags = _flags(module)
    at_rest: dict[str, Any] = {name: not value for name, value in flags.items()}
    # Modules of others have convolutions whose derivatives are slow; robgrad's own have its layer already.
    seen = (lambda call: call) if type(module).__module__.startswith("robgrad.") else with_fast_convolutions

    def init(key: Array, image_shape: Sequence[int]) -> Variables:
        asked = module, key, tuple(image_shape), tuple(flags.items())
        try:
            hash(module)
        except TypeError:  # Attributes without a hash, such as lists, cannot name a program.
            variables = dict(_initial(*asked))
        else:
            variables = dict(_compiled(*asked))
        try:
            jax.eval_shape(evaluate, variables, jnp.zeros((1, *image_shape)))
        except (flax.errors.ModifyScopeVariableError, flax.errors.InvalidRngError) as error:
            raise ValueError(
                f"{type(module).__name__}: expected a module that changes nothing and draws nothing in evaluation, got "
                f"one that does without a switch named {', '.join(FLAGS)}; give its call such a parameter"
            ) from error
        drawn = _draws(module, variables, flags, image_shape)
        return variables | ({STREAMS: jax.random.key_data(key)} if drawn else {})

    def evaluate(variables: Variables, images: Array) -> Array:
        held = {name: values for name, values in variables.items() if name != STREAMS}
        return cast(Array, seen(lambda held, images: module.apply(held, images, **at_rest))(held, images))

    def train(variables: Variables, images: Array, weights: Array) -> tuple[Array, Variables]:
        held = {name: values for name, values in variables.items() if name != STREAMS}
        moving = [name for name in held if name != "params"]
        options: dict[str, Any] = {**flags, **({"weights": weights} if weighted else {})}
        streams = {}
        if STREAMS in variables:
            now, then = jax.random.split(jax.random.wrap_key_data(variables[STREAMS]))
            streams = {STREAMS: jax.random.key_data(then)}
            # Each device has a part of the batch, and noise of its own.
            noise = jax.random.fold_in(now, lax.axis_index(stacking.DATA))
            options["rngs"] = {"params": noise, "dropout": jax.random.fold_in(noise, 1)}
        if moving:
            options["mutable"] = moving
        found = seen(lambda held, images: module.apply(held, images, **options))(held, images)
        if not moving:
            return cast(Array, found), {**variables, **streams}
        logits, moved = found
        # Modules of others know nothing of the other devices' parts: what has moved there is averaged.
        moved = moved if weighted else lax.pmean(moved, stacking.DATA)
        return cast(Array, logits), {**variables, **moved, **streams}

    return Network(init, evaluate, train)


@dataclass(frozen=True, eq=False)
class OfOne:
    """A network as a function of one image, that says what it is made of."""

    network: nn.Module | Network
    variables: Variables

    def __repr__(self) -> str:
        """How many numbers it holds, not the numbers."""
        held = sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables))
        return f"{type(self).__name__}({type(self.network).__name__} of {held:,} numbers)"

    def __call__(self, image: Array) -> Array:
        """Logits `[classes]` of an image `[H, W, C]`."""
        return of_module(self.network).evaluate(self.variables, image[None])[0]


def predicted(logits: Array) -> Array:
    """The class of the highest logit along the last axis; -1, which is no class, where the highest is not finite.

    A network that answers NaN or infinity has predicted nothing: no label is right there.
    """
    return jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), jnp.argmax(logits, axis=-1), -1)


def logits(network: nn.Module | Network, variables: Variables, images: Array) -> Array:
    """The network's logits `[B, classes]` in evaluation for a batch of images `[B, H, W, C]` in [-1, 1]."""
    return of_module(network).evaluate(variables, images)


def logits_fn(network: nn.Module | Network, variables: Variables) -> LogitsFn:
    """The network in evaluation as a function of one image `[H, W, C]`, as attacks and attributions take it.

    It is an `OfOne`, whose layers an attribution may look at.
    """
    return OfOne(network, variables)


def init(network: nn.Module | Network, key: Array, image_shape: Sequence[int]) -> Variables:
    """Initial variables for images `[H, W, C]`."""
    return of_module(network).init(key, image_shape)


def intensity(network: nn.Module | Network, image_shape: Sequence[int], attack_steps: int | None = None) -> float:
    """Operations for each parameter in a pass over one image, for `stacking.device_mesh`.

    Args:
      network: whose parameters.
      image_shape: `[H, W, C]`.
      attack_steps: where the network is trained, those of each training step's attack, 0 without one. A training step
        passes the parameters twice for each of them and three times for its own gradient; to sum the gradients of
        devices and to update the parameters reads them as often as `UPDATE` passes do, without their operations.
    """
    variables = jax.eval_shape(lambda: init(network, jax.random.key(0), image_shape))
    image = jax.ShapeDtypeStruct(tuple(image_shape), jnp.float32)
    once = stacking.intensity(lambda variables, image: logits_fn(network, variables)(image), variables, image)
    passes = math.inf if attack_steps is None else 2 * attack_steps + 3
    return once / (1 + UPDATE / passes)


# What experiments offer by flag: builders `(image_shape, classes) -> module`.
NETWORKS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "paper": classifier_for,
    "preact-resnet-18": lambda image_shape, classes: preact_resnet_18(classes),
    **{
        f"wide-resnet-{depth}-{width}": partial(
            lambda depth, width, image_shape, classes: wide_resnet(depth, width, classes), depth, width
        )
        for depth, width in ((10, 1), (16, 4), (28, 10))
    },
}


def network_named(name: str, image_shape: Sequence[int], classes: int) -> nn.Module:
    """The module of a name in `NETWORKS` for images `[H, W, C]`.

    Raises:
      ValueError: if there is no such name.
    """
    if name not in NETWORKS:
        raise ValueError(f"expected a network of {', '.join(NETWORKS)}, got '{name}'")
    return NETWORKS[name](image_shape, classes)
