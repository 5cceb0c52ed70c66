"""Variants of adversarial training: other losses of the attacked image, other starts, other goals, moved weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad import stacking
from robgrad.attacks import Loss, Norm, cross_entropy, norm_named
from robgrad.data.checks import PIXEL_RANGE
from robgrad.networks import Variables
from robgrad.training.objectives import Objective, Outcome, Passes


def _keys(passes: Passes) -> Array:
    """Keys of the images, other than their attacks'."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1))(passes.batch.keys)


def mart() -> Objective:
    """MART (Wang et al., 2020): BCE(p(x'), y) + weight KL(p(x) || p(x')) (1 - p_y(x)), weight = `numbers.weight`.

    BCE = -log p_y - log(1 - max_{k != y} p_k) is the boosted cross-entropy. x' is attacked by the cross-entropy, as
    its authors did from a normal start of deviation 0.001. Smoothed or mixed labels count as their greatest class.
    """

    def objective(variables, passes: Passes, images, labels, numbers):
        attacked = passes.perturb(images, labels)
        clean, variables = passes.train(variables, images)
        logits, variables = passes.train(variables, attacked)
        own, theirs = jax.nn.log_softmax(clean), jax.nn.log_softmax(logits)
        classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
        true = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
        wrong = jnp.max(jnp.where(true, -jnp.inf, theirs), axis=-1)
        boosted = jax.vmap(cross_entropy)(logits, labels) - jnp.log1p(-jnp.exp(jnp.minimum(wrong, -1e-6)))
        divergence = jnp.sum(jnp.exp(own) * (own - theirs), axis=-1)
        doubt = -jnp.expm1(jnp.sum(jnp.where(true, own, 0.0), axis=-1))
        return Outcome(boosted + numbers.weight * divergence * doubt, logits, variables)

    return objective


def noisy_start(norm: Norm | str, noise: float = 2.0) -> Objective:
    """N-FGSM (de Jorge et al., 2022): a single step from x + u, with u uniform in a ball of `noise` times the radius.

    Build the attack with one step of the size of the radius; it is made around the noisy image and not brought back
    into the ball around x, so that what is trained on lies up to 1 + `noise` radii away, inside the pixel range.

    Raises:
      ValueError: if the noise is negative.
    """
    norm = norm_named(norm)
    if not noise >= 0:
        raise ValueError(f"expected a noise of 0 or more radii, got {noise}")

    def objective(variables, passes: Passes, images, labels, numbers):
        start = lambda key, image: image + norm.random_start(key, image, noise * numbers.epsilon)  # noqa: E731
        noisy = jnp.clip(jax.vmap(start)(_keys(passes), images), *PIXEL_RANGE)
        logits, variables = passes.train(variables, passes.perturb(noisy, labels))
        return Outcome(jax.vmap(cross_entropy)(logits, labels), logits, variables)

    return objective


def towards_another(loss: Loss = cross_entropy) -> Objective:
    """Adversarial training whose attack leads each image towards a random other class, the goal `(label, target)`."""

    def objective(variables, passes: Passes, images, labels, numbers):
        classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
        count = jax.eval_shape(passes.evaluate, images[:1]).shape[-1]
        further = jax.vmap(lambda key: jax.random.randint(key, (), 1, count))(_keys(passes))
        attacked = passes.perturb(images, (classes, (classes + further) % count))
        logits, variables = passes.train(variables, attacked)
        return Outcome(jax.vmap(loss)(logits, labels), logits, variables)

    return objective


def weight_perturbed(objective: Objective, size: float = 0.005) -> Objective:
    """AWP (Wu, Xia and Wang, 2020): an objective at weights moved to where it is higher, w + size ||w|| g / ||g||.

    g is the objective's gradient by the weights on the attacked batch, ||.|| the l2 norm of each array of weights by
    itself; arrays of one axis, biases and scales, stay. The gradient taken there is the step's, at the weights
    themselves. The images are attacked once, by the network as it is.

    Raises:
      ValueError: if the size is not above 0.
    """
    if not size > 0:
        raise ValueError(f"expected a size above 0, a share of the weights' norms, got {size}")

    def perturbed(variables: Variables, passes: Passes, images, labels, numbers):
        share = passes.batch.weights / stacking.summed(passes.batch.weights.sum())
        held = lax.stop_gradient(variables)

        def mean_loss(params: Any) -> tuple[Array, list[Array]]:
            found: list[Array] = []

            def remembered(images, labels):
                found.append(passes.perturb(images, labels))
                return found[-1]

            first = passes._replace(perturb=remembered)
            return jnp.sum(share * objective({**held, "params": params}, first, images, labels, numbers).losses), found

        slopes, attacked = jax.grad(mean_loss, has_aux=True)(held["params"])
        slopes, remaining = stacking.summed(slopes), iter(attacked)

        def moved(weights: Array, slope: Array) -> Array:
            if weights.ndim < 2:
                return weights
            return weights + size * jnp.linalg.norm(lax.stop_gradient(weights)) * _unit(slope)

        params = jax.tree.map(moved, variables["params"], slopes)
        again = passes._replace(perturb=lambda images, labels: next(remaining))
        return objective({**variables, "params": params}, again, images, labels, numbers)

    return perturbed


def _unit(slope: Array) -> Array:
    """A gradient scaled to norm 1, 0 where it is 0; scaled first, since the squares of a small one are nothing."""
    largest = jnp.max(jnp.abs(slope))
    scaled = slope / jnp.where(largest > 0, largest, 1.0)
    return scaled / jnp.where(largest > 0, jnp.linalg.norm(scaled), 1.0)
