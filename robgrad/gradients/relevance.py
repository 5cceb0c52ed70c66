"""Layer-wise relevance propagation: a logit, shared out among the pixels from layer to layer.

As the attributions of `propagation`, of any network whose operations JAX can trace, except products of two arrays that
both depend on the image.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.data import PIXEL_RANGE
from robgrad.gradients.attributions import Attribution
from robgrad.gradients.graph import Graph, Step
from robgrad.gradients.outputs import Pixels, signed
from robgrad.gradients.propagation import explained, marked, network_of, no_rule
from robgrad.networks import LogitsFn

# Operations behind a product that scale what it gives, maybe by a negative number.
_SCALES = ("mul", "div", "sub")


def lrp(
    rule: Literal["epsilon", "z+", "composite"] = "composite",
    epsilon: float = 1e-6,
    pixels: Pixels = signed,
    label: Array | int | None = None,
) -> Attribution:
    """Layer-wise relevance propagation (Bach et al., 2015): a logit, shared out from layer to layer.

    With activations a and weights w a layer's inputs get a_i w_ij / z_j of what its outputs have, z_j = sum_i a_i w_ij.

    - `epsilon`: so, with z_j moved away from zero by epsilon of its own sign.
    - `z+`: positive products alone.
    - `composite` (Montavon et al., 2019): epsilon in dense layers, z+ in convolutions, and in the first layer the box
      rule for pixels in [-1, 1], whose lower and upper bound are taken into account.

    A layer is a product or convolution with the bias and the normalisation behind it, whose scale counts as part of the
    weights. A residual sum and a mean share as a layer of weights 1 does, a max-pool passes all to its winner, a
    function of each number all. With `epsilon` biases take their share, and the sum is the logit less that.

    Args:
      rule: one of these.
      epsilon: in units of the pre-activations.
      pixels: how channels become one value.
      label: the class whose logit is explained; by default the predicted one.

    Raises:
      ValueError: if there is no such rule; as it is called, for a product of two arrays that both depend on the image,
        as in attention and gates.
    """
    if rule not in ("epsilon", "z+", "composite"):
        raise ValueError(f"expected a rule of epsilon, z+, composite, got '{rule}'")

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image, graph, values = network_of(logits_fn, image)
        tails = _tails(graph)
        inside = {index for tail in tails.values() for index in tail}
        products = [index for index, step in enumerate(graph.steps) if step.kind == "product"]
        first = products[0] if products and rule == "composite" else None
        ends = [graph.values(jnp.full_like(image, bound)) for bound in PIXEL_RANGE if first is not None]

        def shared(index: int, given: list[Any], back: list[Array]) -> Sequence[Array]:
            step = graph.steps[index]
            if index in inside:
                # What the end of a layer has waits for the product that it begins with.
                return back
            if step.kind != "product":
                return _passed_on(step, given, back, rule, epsilon)
            layer = _Layer(step, [graph.steps[one] for one in tails[index]], values)
            if index == first:
                return [layer.boxed(back[0], epsilon, [each[step.reads[step.moving[0]]] for each in ends])]
            dense = step.name == "dot_general"
            if rule == "epsilon" or (rule == "composite" and dense):
                return [layer.by_share(back[0], epsilon)]
            return [layer.positive(back[0], epsilon)]

        start, there = explained(values[graph.logits], label)
        back = graph.passed_back(values, start * values[graph.logits], shared)
        return marked(pixels(graph.back_to_image(back, image)), there)

    return attribution


def _stable(total: Array, epsilon: float) -> Array:
    return total + epsilon * jnp.where(total >= 0, 1.0, -1.0)


def _tails(graph: Graph) -> dict[int, list[int]]:
    """Of each product the steps behind it that belong to its layer: bias, normalisation, and moves between them."""
    readers: dict[int, list[int]] = {graph.logits: [-1]}
    for index, step in enumerate(graph.steps):
        for order in step.moving:
            readers.setdefault(step.reads[order], []).append(index)

    def tail(index: int) -> list[int]:
        found: list[int] = []
        after = readers.get(graph.steps[index].writes[0], [])
        while len(after) == 1 and after[0] >= 0 and graph.steps[after[0]].kind in ("affine", "moved"):
            step = graph.steps[after[0]]
            if step.name not in (*_SCALES, "add", "transpose", "reshape", "squeeze", "convert_element_type"):
                break
            found.append(after[0])
            after = readers.get(step.writes[0], [])
        return found

    return {index: tail(index) for index, step in enumerate(graph.steps) if step.kind == "product"}


class _Layer(NamedTuple):
    """A product of what it is given with a kernel, and what belongs to the same layer behind it."""

    step: Step
    tail: Sequence[Step]
    values: Sequence[Any]

    @property
    def given(self) -> list[Any]:
        return self.step.given(self.values)

    @property
    def inputs(self) -> Array:
        return self.given[self.step.moving[0]]

    def behind(self, product: Array) -> Array:
        """What the layer gives for a product."""
        for step in self.tail:
            given = step.given(self.values)
            given[step.moving[0]] = product
            (product,) = step.apply(*given)
        return product

    def by_share(self, relevance: Array, epsilon: float) -> Array:
        """Relevance of the inputs by the epsilon rule."""
        (product,) = self.step.apply(*self.given)
        total, back = jax.vjp(self.behind, product)
        (cotangent,) = back(relevance / _stable(total, epsilon))
        return self.inputs * self.step.transposed(self.given, [cotangent])[0]

    def positive(self, relevance: Array, epsilon: float) -> Array:
        """Relevance of the inputs by the z+ rule."""

        def parts(kernel: Array) -> list[tuple[Array, Array]]:
            return [
                (jnp.maximum(self.inputs, 0.0), jnp.maximum(kernel, 0.0)),
                (jnp.minimum(self.inputs, 0.0), jnp.minimum(kernel, 0.0)),
            ]

        return self.of_parts(relevance, parts, epsilon)

    def boxed(self, relevance: Array, epsilon: float, ends: Sequence[Array]) -> Array:
        """Relevance of the inputs by the box rule, x w - l w+ - h w-, between what they are for the darkest and the
        brightest image.
        """
        low, high = jnp.minimum(*ends), jnp.maximum(*ends)

        def parts(kernel: Array) -> list[tuple[Array, Array]]:
            return [(self.inputs, kernel), (-low, jnp.maximum(kernel, 0.0)), (-high, jnp.minimum(kernel, 0.0))]

        return self.of_parts(relevance, parts, epsilon)

    def of_parts(self, relevance: Array, parts: Callable[[Array], list[tuple[Array, Array]]], epsilon: float) -> Array:
        """Relevance shared out by products of parts of inputs and kernel; the kernel has the sign of what scales it."""
        (place,) = (order for order in range(2) if order not in self.step.moving)
        product, kernel = self.step.apply(*self.given)[0], self.given[place]
        _, back = jax.vjp(self.behind, product)
        (scale,) = back(jnp.ones_like(relevance))
        for step in self.tail[::-1]:
            if step.kind == "moved":
                (relevance,) = step.transposed(step.given(self.values), [relevance])

        def of(inputs: Array, kernel: Array) -> Array:
            every = list(self.given)
            every[self.step.moving[0]], every[place] = inputs, kernel
            return self.step.apply(*every)[0]

        shares = jnp.zeros_like(self.inputs)
        for sign in (1.0, -1.0) if any(step.name in _SCALES for step in self.tail) else (1.0,):
            pairs = parts(sign * kernel)
            total = sum((of(*pair) for pair in pairs), jnp.zeros_like(product))
            here = jnp.where((scale >= 0) == (sign > 0), relevance / _stable(total, epsilon), 0.0)
            for inputs, part in pairs:
                shares += inputs * jax.vjp(lambda x, part=part: of(x, part), inputs)[1](here)[0]
        return shares


def _passed_on(step: Step, given: list[Any], back: list[Array], rule: str, epsilon: float) -> Sequence[Array]:
    """Relevance of what an operation that is not a product is given."""
    shifts = step.kind == "affine" and step.name not in ("mul", "div")
    if step.kind == "linear" or (shifts and rule == "epsilon"):
        total = step.apply(*given)[0]
        shares = step.transposed(given, [back[0] / _stable(total, epsilon)])
        return [given[place] * share for place, share in zip(step.moving, shares, strict=True)]
    if step.kind in ("moved", "choice"):
        return step.transposed(given, back)
    if step.kind in ("affine", "rectifier", "curve"):
        return back
    raise no_rule("LRP", step)
