"""Attributions that propagate through a network's layers: DeepLIFT, LRP, GradCAM, Guided Backpropagation.

They need to know the layers, so they are for the package's own networks without batch norm (`networks.CNN`, `MLP`), as
`networks.logits_fn` and `runs.load_network` give them. Otherwise they are attributions like all others:
`(key, logits_fn, image) -> [H, W]`. What is explained is the logit of the predicted class.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.data.calls import checked_example, pixels_of
from robgrad.gradients.attributions import Attribution
from robgrad.gradients.outputs import Pixels, absolute, signed
from robgrad.networks import CNN, MLP, LogitsFn, OfOne, layers, predicted


class Layer(NamedTuple):
    """One layer of a network, of batches: `linear` with kernel and bias, `relu`, `pool` or `flatten`."""

    kind: Literal["linear", "relu", "pool", "flatten"]
    kernel: Any = None
    bias: Any = None

    def __call__(self, inputs: Array) -> Array:
        """Applies the layer."""
        match self.kind:
            case "relu":
                return jax.nn.relu(inputs)
            case "pool":
                return layers.max_pool(inputs)
            case "flatten":
                return inputs.reshape(len(inputs), -1)
        return self.product(inputs, self.kernel) + self.bias

    def with_back(self, inputs: Array, cotangent: Array) -> tuple[Array, Array]:
        """What the layer gives, and what its transpose makes of a cotangent there."""
        outputs, back = jax.vjp(lambda x: self(x), inputs)
        return outputs, back(cotangent)[0]

    def product(self, inputs: Array, kernel: Array) -> Array:
        """A linear layer's product with another kernel of its shape, without bias."""
        return layers.conv(inputs, kernel) if kernel.ndim == 4 else inputs @ kernel


def layers_of(logits_fn: LogitsFn) -> list[Layer]:
    """The layers of one of the package's own networks.

    Raises:
      ValueError: if it is not one of those without batch norm.
    """
    network = getattr(logits_fn, "network", None)
    if not isinstance(logits_fn, OfOne) or not isinstance(network, CNN | MLP):
        raise ValueError(
            "expected one of the package's own networks CNN or MLP, as networks.logits_fn(network, variables) or "
            f"runs.load_network give it, got {type(network or logits_fn).__name__}; this attribution propagates "
            "through layers that it must know"
        )
    params, found = logits_fn.variables["params"], []
    if isinstance(network, CNN):
        index = 0
        for stage in network.stages:
            for _ in stage:
                found += [_linear(params[f"Conv_{index}"]), Layer("relu")]
                index += 1
            found.append(Layer("pool"))
        params, hidden = params["MLP_0"], 1
    else:
        hidden = len(network.hidden)
    found.append(Layer("flatten"))
    for index in range(hidden):
        found += [_linear(params[f"Dense_{index}"]), Layer("relu")]
    return [*found, _linear(params[f"Dense_{hidden}"])]


def _linear(params: Any) -> Layer:
    return Layer("linear", params["kernel"], params["bias"])


def _passed(network: Sequence[Layer], image: Array) -> list[Array]:
    """What each layer is given, and last the logits, for one image; batches of one."""
    values = [image[None]]
    for layer in network:
        values.append(layer(values[-1]))
    return values


def _predicted(logits: Array) -> Array:
    """One for the predicted class, zero for the others; NaN where the logits predict none."""
    label = predicted(logits)
    return jnp.where(label[..., None] < 0, jnp.nan, jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype))


def guided_backpropagation(pixels: Pixels = absolute) -> Attribution:
    """Guided Backpropagation (Springenberg et al., 2015): the gradient, cut at zero at each ReLU on its way back."""

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        network, image = layers_of(logits_fn), checked_example(logits_fn, image)
        values = _passed(network, image)
        back = _predicted(values[-1])
        for layer, given in zip(network[::-1], values[-2::-1], strict=True):
            if layer.kind == "relu":
                back = jnp.where(given > 0, jnp.maximum(back, 0.0), 0.0)
            else:
                _, back = layer.with_back(given, back)
        return pixels(back[0])

    return attribution


def grad_cam() -> Attribution:
    """GradCAM (Selvaraju et al., 2017): the last convolution's features, weighted by their mean gradients, cut at zero.

    Resized to the image linearly. Networks without convolutions have none.
    """

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        network, image = layers_of(logits_fn), checked_example(logits_fn, image)
        convolutions = [place for place, one in enumerate(network) if one.kernel is not None and one.kernel.ndim == 4]
        if not convolutions:
            raise ValueError("expected a network with convolutions, got one without")
        last = convolutions[-1]
        # After the convolution's ReLU.
        features = _passed(network[: last + 2], image)[-1]

        def rest(values: Array) -> Array:
            for layer in network[last + 2 :]:
                values = layer(values)
            return values

        logits, back = jax.vjp(rest, features)
        weights = back(_predicted(logits))[0].mean((1, 2), keepdims=True)
        cam = jax.nn.relu(jnp.sum(weights * features, axis=-1))[0]
        return jax.image.resize(cam, image.shape[:2], "linear")

    return attribution


def deep_lift(baseline: Array | float = 0.0, pixels: Pixels = absolute) -> Attribution:
    """DeepLIFT by the rescale rule (Shrikumar, Greenside and Kundaje, 2017).

    A ReLU passes back the ratio of what changed after it to what changed before it, between the image and the baseline
    (its gradient where nothing changed), a max-pool what changed after it to the places of both maxima, a linear layer
    its transpose; times the change of the image. Values sum to the logit's change, exactly.

    Args:
      baseline: an image, a grey picture `[H, W]`, a colour `[C]` or a value for every pixel.
      pixels: how channels become one value.
    """

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        network, image = layers_of(logits_fn), checked_example(logits_fn, image)
        base = pixels_of("baseline", baseline, image)
        values, others = _passed(network, image), _passed(network, base)
        back = _predicted(values[-1])
        for index in range(len(network) - 1, -1, -1):
            layer, given, other = network[index], values[index], others[index]
            if layer.kind == "relu":
                back = back * _ratio(values[index + 1] - others[index + 1], given - other, given > 0)
            elif layer.kind == "pool":
                back = _pooled(layer, given, other, back)
            else:
                _, back = layer.with_back(given, back)
        return pixels(back[0] * (image - base))

    return attribution


def _ratio(after: Array, before: Array, slope: Array) -> Array:
    small = jnp.abs(before) < 1e-6
    return jnp.where(small, slope, after / jnp.where(small, 1.0, before))


def _pooled(layer: Layer, given: Array, other: Array, back: Array) -> Array:
    """Multipliers before a max-pool: its change, to the winner of the image and that of the baseline."""
    one, two = layer(given), layer(other)
    most = jnp.maximum(one, two)
    _, mine = layer.with_back(given, back * (most - two))
    _, theirs = layer.with_back(other, back * (one - most))
    _, gradient = layer.with_back(given, back)
    before = given - other
    small = jnp.abs(before) < 1e-6
    return jnp.where(small, gradient, (mine + theirs) / jnp.where(small, 1.0, before))


def lrp(
    rule: Literal["epsilon", "z+", "composite"] = "composite", epsilon: float = 1e-6, pixels: Pixels = signed
) -> Attribution:
    """Layer-wise relevance propagation (Bach et al., 2015): a logit, shared out from layer to layer.

    With activations a and weights w a layer's inputs get a_i w_ij / z_j of what its outputs have, z_j = sum_i a_i w_ij.

    - `epsilon`: so, with z_j moved away from zero by epsilon of its own sign.
    - `z+`: positive products alone.
    - `composite` (Montavon et al., 2019): epsilon in dense layers, z+ in convolutions, and in the first layer the box
      rule for pixels in [-1, 1], whose lower and upper bound are taken into account.

    A max-pool passes all to its winner. With `epsilon` biases take their share, and the sum is the logit less that.

    Args:
      rule: one of these.
      epsilon: in units of the pre-activations.
      pixels: how channels become one value.

    Raises:
      ValueError: if there is no such rule.
    """
    if rule not in ("epsilon", "z+", "composite"):
        raise ValueError(f"expected a rule of epsilon, z+, composite, got '{rule}'")

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        network, image = layers_of(logits_fn), checked_example(logits_fn, image)
        values = _passed(network, image)
        relevance = values[-1] * _predicted(values[-1])
        first = next(index for index, layer in enumerate(network) if layer.kind == "linear")
        for index in range(len(network) - 1, -1, -1):
            layer, given = network[index], values[index]
            if layer.kind == "linear":
                dense = layer.kernel.ndim == 2
                own = rule if rule != "composite" else "box" if index == first else "epsilon" if dense else "z+"
                relevance = _shared(layer, given, relevance, own, epsilon)
            elif layer.kind != "relu":
                _, relevance = layer.with_back(given, relevance)
        return pixels(relevance[0])

    return attribution


def _shared(layer: Layer, given: Array, relevance: Array, rule: str, epsilon: float) -> Array:
    """Relevance of a linear layer's inputs, of that of its outputs."""
    kernel = layer.kernel
    positive, negative = jnp.maximum(kernel, 0.0), jnp.minimum(kernel, 0.0)
    if rule == "epsilon":
        products = [(given, kernel)]
    elif rule == "z+":
        products = [(jnp.maximum(given, 0.0), positive), (jnp.minimum(given, 0.0), negative)]
    else:
        # x w - l w+ - h w-, for l = -1 and h = 1.
        products = [(given, kernel), (jnp.ones_like(given), positive), (-jnp.ones_like(given), negative)]
    total = sum((layer.product(*one) for one in products), layer.bias if rule == "epsilon" else 0.0)
    shares = relevance / (total + epsilon * jnp.where(total >= 0, 1.0, -1.0))

    def back(inputs: Array, weights: Array) -> Array:
        return inputs * jax.vjp(lambda x: layer.product(x, weights), inputs)[1](shares)[0]

    return sum((back(*one) for one in products), jnp.zeros_like(given))
