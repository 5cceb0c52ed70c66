"""Attributions that propagate through a network's operations: DeepLIFT, GradCAM, Guided Backpropagation.

They are attributions like all others, `(key, logits_fn, image) -> [H, W]`, of any function of one image that JAX can
trace: linen, NNX, Equinox, and what `networks.of_torch` makes; with batch norm, residual sums and pooling. What is
explained is the logit of the predicted class, or of a given one. Where an operation has no rule, its name is said.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.data.calls import checked_example, pixels_of
from robgrad.gradients.attributions import Attribution
from robgrad.gradients.graph import Graph, Step, traced
from robgrad.gradients.outputs import Pixels, absolute, class_of, prediction
from robgrad.networks import LogitsFn

# Below this change of what an operation is given, its slope stands for the ratio of changes.
_SMALL = 1e-6


def network_of(logits_fn: LogitsFn, image: Array) -> tuple[Array, Graph, list[Any]]:
    """The image, checked, the network's operations, and their values."""
    image = checked_example(logits_fn, image)
    graph = traced(logits_fn, image)
    return image, graph, graph.values(image)


def explained(logits: Array, label: Array | int | None) -> tuple[Array, Array]:
    """One for the class that is explained, zero for the others; and a factor, NaN where there is no such class."""
    if label is None:
        chosen, there = prediction(logits)
    else:
        chosen = class_of(label, logits)
        there = jnp.where((chosen >= 0) & (chosen < logits.shape[-1]), 1.0, jnp.nan)
    return jax.nn.one_hot(chosen, logits.shape[-1], dtype=logits.dtype), there.astype(logits.dtype)


def marked(values: Array, there: Array) -> Array:
    """The values, NaN where nothing is explained."""
    return jnp.where(jnp.isnan(there), jnp.nan, values)


def guided_backpropagation(pixels: Pixels = absolute, label: Array | int | None = None) -> Attribution:
    """Guided Backpropagation (Springenberg et al., 2015): the gradient, cut at zero at each ReLU on its way back.

    And at each of its kin: `max(x, c)` with a constant c, a leaky ReLU, SiLU or GELU.

    Args:
      pixels: how channels become one value.
      label: the class whose logit is explained; by default the predicted one.
    """

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image, graph, values = network_of(logits_fn, image)

        def rule(index: int, given: list[Any], back: list[Array]) -> Sequence[Array]:
            step = graph.steps[index]
            cut = [jnp.maximum(one, 0.0) for one in back] if step.kind == "rectifier" else back
            return step.transposed(given, cut)

        start, there = explained(values[graph.logits], label)
        return marked(pixels(graph.back_to_image(graph.passed_back(values, start, rule), image)), there)

    return attribution


def grad_cam(label: Array | int | None = None) -> Attribution:
    """GradCAM (Selvaraju et al., 2017): the last convolution's features, weighted by their mean gradients, cut at zero.

    The features are those after bias, normalisation, residual sum and activation, before anything is pooled; they are
    resized to the image linearly. Networks without convolutions have none.

    Args:
      label: the class whose logit is explained; by default the predicted one.
    """

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image, graph, values = network_of(logits_fn, image)
        place, axes = _features_of(graph, values)
        start, there = explained(values[graph.logits], label)
        back = graph.passed_back(values, start, lambda index, given, got: graph.steps[index].transposed(given, got))
        # The network may look at none of them.
        slopes = jnp.zeros_like(values[place]) if back[place] is None else back[place]
        features, slopes = (jnp.moveaxis(one, axes, (-3, -2, -1)) for one in (values[place], slopes))
        features, slopes = (one.reshape(one.shape[-3:]) for one in (features, slopes))
        cam = jax.nn.relu(jnp.sum(slopes.mean((0, 1)) * features, axis=-1))
        return marked(jax.image.resize(cam, image.shape[:2], "linear"), there)

    return attribution


def _features_of(graph: Graph, values: Sequence[Any]) -> tuple[int, tuple[int, ...]]:
    """Where the last convolution's features are, after what follows on each number; and which axes are H, W and C.

    Of the convolutions with more than one place the last, followed through bias, normalisation, residual sums and
    activations, as long as the features keep their shape. All other axes are of length 1.

    Raises:
      ValueError: if there is none.
    """
    seen: dict[int, tuple[int, ...]] = {}
    for step in graph.steps:
        if not step.moving:
            continue
        (place, *_), found = step.writes, values[step.writes[0]]
        if step.kind == "product" and step.axes and (axes := _pictures(step.axes, found.shape)):
            seen = {place: axes}
            continue
        of = [read for read in step.reads if read in seen]
        if not of:
            continue
        axes, before = seen[of[-1]], values[of[-1]]
        if step.name == "transpose":
            seen[place] = tuple(step.axes.index(axis) for axis in axes)
        elif step.kind != "other" and step.name != "rev" and found.shape == before.shape:
            seen[place] = axes
        elif step.kind == "moved" and 1 not in (before.shape[axis] for axis in axes):
            # Axes of length 1 come and go; the others keep their order.
            long = [[axis for axis, length in enumerate(one.shape) if length > 1] for one in (before, found)]
            if [before.shape[axis] for axis in long[0]] == [found.shape[axis] for axis in long[1]]:
                seen[place] = tuple(long[1][long[0].index(axis)] for axis in axes)
    if not seen:
        raise ValueError("expected a network with convolutions, got one without")
    return list(seen.items())[-1]


def _pictures(axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height, width and channels of a convolution's result of more than one place; nothing of another."""
    if len(shape) > len(axes):  # Mapped over a batch, of one image.
        axes = (0, *(axis for axis, length in enumerate(shape) if length > 1))
    _, *places = axes
    others = math.prod(shape) // math.prod(shape[axis] for axis in places)
    return tuple(places) if len(places) == 3 and others == 1 and shape[places[0]] * shape[places[1]] > 1 else ()


def deep_lift(
    baseline: Array | float = 0.0, pixels: Pixels = absolute, label: Array | int | None = None
) -> Attribution:
    """DeepLIFT by the rescale rule (Shrikumar, Greenside and Kundaje, 2017).

    A function of each number passes back the ratio of what changed after it to what changed before it, between the
    image and the baseline (its gradient where nothing changed); a linear operation its transpose; a choice, as in
    max-pooling, what changed after it to the places that are chosen of the image and of the baseline; a product of two
    arrays that both change, as in attention, the mean of the other one; all times the change of the image. Values sum
    to the logit's change, exactly.

    Args:
      baseline: an image, a grey picture `[H, W]`, a colour `[C]` or a value for every pixel.
      pixels: how channels become one value.
      label: the class whose logit is explained; by default the predicted one.
    """

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image, graph, values = network_of(logits_fn, image)
        base = pixels_of("baseline", baseline, image)
        others = graph.values(base)

        def rule(index: int, given: list[Any], back: list[Array]) -> Sequence[Array]:
            step = graph.steps[index]
            return _lifted(step, given, step.given(others), back)

        start, there = explained(values[graph.logits], label)
        back = graph.back_to_image(graph.passed_back(values, start, rule), image)
        return marked(pixels(back * (image - base)), there)

    return attribution


def _lifted(step: Step, given: list[Any], other: list[Any], back: list[Array]) -> Sequence[Array]:
    """Multipliers of what an operation is given, of those of its results."""
    if step.name == "stop_gradient":
        return back
    match step.kind:
        case "moved" | "linear" | "affine" | "product":
            return step.transposed(given, back)
        case "bilinear" if step.name == "div":
            # The first times the reciprocal of the second.
            (one, two), (first, second) = given, other
            _, spread = jax.vjp(jnp.multiply, (one + first) / 2, (1 / two + 1 / second) / 2)
            upper, reciprocal = spread(back[0])
            return [upper, -reciprocal / (two * second)]
        case "bilinear":
            return step.transposed([(one + two) / 2 for one, two in zip(given, other, strict=True)], back)
        case "rectifier" | "curve":
            place = step.moving[0]
            after, before = step.apply(*given)[0] - step.apply(*other)[0], given[place] - other[place]
            return [_ratio(back[0] * after, before, step.transposed(given, back)[0])]
        case "choice":
            return _chosen(step, given, other, back[0])
    raise no_rule("DeepLIFT", step)


def no_rule(attribution: str, step: Step) -> ValueError:
    """The error that says which operation an attribution does not know."""
    of = " of two arrays that depend on the image" if step.kind == "bilinear" else ""
    return ValueError(
        f"expected a network of operations that {attribution} has a rule for, got '{step.name}'{of}; attributions by "
        "gradients, such as integrated gradients, take any network"
    )


def _ratio(after: Array, before: Array, slope: Array) -> Array:
    small = jnp.abs(before) < _SMALL
    return jnp.where(small, slope, after / jnp.where(small, 1.0, before))


def _chosen(step: Step, given: list[Any], other: list[Any], back: Array) -> list[Array]:
    """Multipliers before a choice: its change, to what is chosen of the image and to what is of the baseline."""
    one, two = step.apply(*given)[0], step.apply(*other)[0]
    most = jnp.maximum(one, two)
    mine = step.transposed(given, [back * (most - two)])
    theirs = step.transposed(other, [back * (one - most)])
    slopes = step.transposed(given, [back])
    changes = [given[place] - other[place] for place in step.moving]
    return [
        _ratio(here + there, change, slope)
        for here, there, change, slope in zip(mine, theirs, changes, slopes, strict=True)
    ]
