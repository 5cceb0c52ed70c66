"""Objectives that flatten the loss around an image instead of descending it at an attacked one.

Each adds to the cross-entropy L of what training shows of an image x, `numbers.weight` times a term made of the input
gradient g = dL/dx. Weight and radius, `numbers.epsilon`, are numbers of the replica, so that strengths stack as in PGD
training. Derivatives are by reverse mode, twice or three times over, since the layers' own derivatives know no forward
mode; statistics of batch norm move with the batch whose cross-entropy is L alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.attacks import Norm, cross_entropy, norm_named
from robgrad.data.calls import mask_of
from robgrad.networks import Variables
from robgrad.training.objectives import Objective, Outcome, Passes


class Slopes(NamedTuple):
    """Of a batch: losses `[B]`, their gradients by the images, logits, and variables with what training moves."""

    losses: Array
    gradients: Array
    logits: Array
    variables: Variables


def slopes(passes: Passes, variables: Variables, images: Array, labels: Array) -> Slopes:
    """The cross-entropy's input gradients in training mode, differentiable by the variables."""

    def total(images: Array):
        logits, moved = passes.train(variables, images)
        losses = jax.vmap(cross_entropy)(logits, labels)
        return losses.sum(), (losses, logits, moved)

    gradients, (losses, logits, moved) = jax.grad(total, has_aux=True)(images)
    return Slopes(losses, gradients, logits, moved)


def _held(passes: Passes, labels: Array) -> Callable[[Array], Array]:
    """Images to their losses' gradients in evaluation mode, for searches that the variables do not see."""
    return jax.grad(lambda images: jax.vmap(cross_entropy)(passes.evaluate(images), labels).sum())


def _along(one: Array, other: Array) -> Array:
    """Inner products of images with images, `[B]`."""
    return jnp.sum((one * other).reshape(len(one), -1), axis=1)


def _cosine(one: Array, other: Array) -> Array:
    """Cosines of the angles between images and images, `[B]`; 1 where either is zero.

    Each is scaled by its largest entry first, held fixed, since a certain network's gradients are as small as 1e-20,
    and their squares nothing. The cosine does not depend on the scale, nor does its derivative.
    """

    def scaled(images: Array) -> tuple[Array, Array]:
        largest = lax.stop_gradient(jnp.abs(images).reshape(len(images), -1).max(1))
        there = largest > 0
        return images / jnp.where(there, largest, 1.0).reshape(-1, *[1] * (images.ndim - 1)), there

    (one, here), (other, there) = scaled(one), scaled(other)
    both = here & there
    squares = jnp.where(both, _along(one, one) * _along(other, other), 1.0)
    return jnp.where(both, _along(one, other) / jnp.sqrt(squares), 1.0)


def gradient_penalty(norm: Norm | str) -> Objective:
    """L + weight * epsilon * ||g||_*, the dual norm of the attack's ball (Drucker and LeCun, 1992).

    epsilon ||g||_* is the worst case of the loss's linear approximation in the ball; the dual of the l-inf norm is l1,
    that of l2 is l2 (Simon-Gabriel et al., 2019). Its derivative is that along the steepest ascent, held fixed.
    """
    norm = norm_named(norm)

    def objective(variables, passes: Passes, images, labels, numbers):
        found = slopes(passes, variables, images, labels)
        steepest = lax.stop_gradient(jax.vmap(norm.ascent)(found.gradients))
        penalty = numbers.epsilon * _along(found.gradients, steepest)
        return Outcome(found.losses + numbers.weight * penalty, found.logits, found.variables)

    return objective


def curvature_penalty(norm: Norm | str) -> Objective:
    """CURE (Moosavi-Dezfooli et al., 2019): L + weight * ||dL/dx (x + epsilon z) - dL/dx (x)||_2^2.

    z is the norm's direction of steepest ascent at x, held fixed; for l-inf the sign of the gradient. They scale z to
    length 1 in l2 and choose the step h; here the step is the radius, in the norm of the ball.
    """
    norm = norm_named(norm)

    def objective(variables, passes: Passes, images, labels, numbers):
        here = slopes(passes, variables, images, labels)
        step = numbers.epsilon * lax.stop_gradient(jax.vmap(norm.ascent)(here.gradients))
        there = slopes(passes, variables, images + step, labels)
        change = there.gradients - here.gradients
        return Outcome(here.losses + numbers.weight * _along(change, change), here.logits, here.variables)

    return objective


def gradient_alignment(norm: Norm | str) -> Objective:
    """GradAlign (Andriushchenko and Flammarion, 2020): L(x') + weight * (1 - cos(dL/dx (x), dL/dx (x + u))).

    x' is attacked, by a single step where the network is trained fast; u is uniform in the ball. The cosine is that of
    gradients of any size; where one is exactly zero the loss is flat there, and the penalty is none.
    """
    norm = norm_named(norm)

    def objective(variables, passes: Passes, images, labels, numbers):
        logits, moved = passes.train(variables, passes.perturb(images, labels))
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(passes.batch.keys)
        noise = jax.vmap(lambda key, image: norm.random_start(key, image, numbers.epsilon))(keys, images)
        here, there = (slopes(passes, variables, at, labels).gradients for at in (images, images + noise))
        penalty = 1 - _cosine(here, there)
        return Outcome(jax.vmap(cross_entropy)(logits, labels) + numbers.weight * penalty, logits, moved)

    return objective


def local_linearity(norm: Norm | str, steps: int = 2, gradient_share: float = 0.75) -> Objective:
    """LLR (Qin et al., 2019): L + weight * (|L(x + d) - L(x) - <d, g>| + share * |<d, g>|), d the worst of the ball.

    d ascends the first term, how far the loss is from linear, from a random start by some steps of `numbers.step_size`.
    Their weights lambda = 4 and mu = 3 are weight 4 and share 0.75.

    Args:
      norm: of the ball.
      steps: of the search.
      gradient_share: weight of the second term, as a share of the first's.
    """
    norm = norm_named(norm)

    def objective(variables, passes: Passes, images, labels, numbers):
        flat = _held(passes, labels)(images)

        def departure(moves: Array) -> Array:
            rise = jax.vmap(cross_entropy)(passes.evaluate(images + moves), labels)
            return jnp.abs(rise - before - _along(moves, flat)).sum()

        before = jax.vmap(cross_entropy)(passes.evaluate(images), labels)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(passes.batch.keys)
        moves = jax.vmap(lambda key, image: norm.random_start(key, image, numbers.epsilon))(keys, images)
        for _ in range(steps):
            ascent = jax.vmap(norm.ascent)(jax.grad(departure)(moves))
            moves = jax.vmap(lambda move: norm.project(move, numbers.epsilon))(moves + numbers.step_size * ascent)
        moves = lax.stop_gradient(moves)
        here = slopes(passes, variables, images, labels)
        logits, _ = passes.train(variables, images + moves)
        linear = _along(moves, here.gradients)
        penalty = jnp.abs(jax.vmap(cross_entropy)(logits, labels) - here.losses - linear)
        penalty += gradient_share * jnp.abs(linear)
        return Outcome(here.losses + numbers.weight * penalty, here.logits, here.variables)

    return objective


def second_order(norm: Norm | str, iterations: int = 1, difference: float = 0.0) -> Objective:
    """SCORPIO (Tsiligkaridis and Roberts, 2020): L + weight * max_d (<g, d> + d^T H d / 2) over the ball.

    The worst case of the loss's quadratic approximation. d starts at epsilon times the steepest ascent of g, a
    single-step attack; each Frank-Wolfe iteration goes to the ball's extreme point along g + H d. A whole step never
    lowers the quadratic where H has no negative eigenvalue; the cross-entropy of a piecewise linear network has none.

    Args:
      norm: of the ball.
      iterations: of Frank and Wolfe, each a product with the Hessian H.
      difference: 0 for exact products, by differentiating twice; else the share of d over which derivatives along it
        are finite differences, their cheaper variant, which also sees kinks as far away as that.

    Raises:
      ValueError: if there are no iterations, or the share is not in [0, 1].
    """
    norm = norm_named(norm)
    if iterations < 1:
        raise ValueError(f"expected at least 1 iteration, got {iterations}")
    if not 0 <= difference <= 1:
        raise ValueError(f"expected a difference in [0, 1], a share of the perturbation, got {difference}")

    def curved(gradient: Callable[[Array], Array], images: Array, flat: Array, moves: Array) -> Array:
        """H d."""
        if difference:
            return (gradient(images + difference * moves) - flat) / difference
        return jax.grad(lambda at: jnp.sum(gradient(at) * moves))(images)

    def objective(variables, passes: Passes, images, labels, numbers):
        gradient = _held(passes, labels)
        flat = gradient(images)
        extreme = lambda slope: numbers.epsilon * jax.vmap(norm.ascent)(slope)  # noqa: E731
        moves = extreme(flat)
        for _ in range(iterations):
            moves = extreme(flat + curved(gradient, images, flat, moves))
        moves = lax.stop_gradient(moves)
        outcome, rise = (_by_differences if difference else _exactly)(passes, variables, images, labels, moves)
        return outcome._replace(losses=outcome.losses + numbers.weight * rise)

    def _exactly(passes: Passes, variables, images, labels, moves) -> tuple[Outcome, Array]:
        def linear(at: Array):
            found = slopes(passes, variables, at, labels)
            return jnp.sum(found.gradients * moves), found

        products, found = jax.grad(linear, has_aux=True)(images)
        rise = _along(found.gradients, moves) + _along(products, moves) / 2
        return Outcome(found.losses, found.logits, found.variables), rise

    def _by_differences(passes: Passes, variables, images, labels, moves) -> tuple[Outcome, Array]:
        logits, moved = passes.train(variables, images)
        losses = jax.vmap(cross_entropy)(logits, labels)
        ahead, behind = (
            jax.vmap(cross_entropy)(passes.train(variables, images + way * difference * moves)[0], labels)
            for way in (1, -1)
        )
        rise = (ahead - behind) / (2 * difference) + (ahead - 2 * losses + behind) / (2 * difference**2)
        return Outcome(losses, logits, moved), rise

    return objective


def masked_gradient_penalty(share: float = 0.5) -> Objective:
    """L(x') + weight * ||m * g||_2^2: what a mask m flags shall not matter (after Ross, Hughes and Doshi-Velez, 2017).

    g is the gradient of the cross-entropy at the true label, the one that attacks and all other objectives here follow.
    The paper has that of sum_k log p_k in its place, which is another function of the logits.

    Examples carry `masks` `[B, H, W]`, above a half where a pixel is flagged, beside images and labels. A share of the
    images is shown with what is flagged replaced by the image's mean, as in LIME-guided refinement (Nayyem, Rakin and
    Wang, 2024); x' is what the step's attack makes of what is shown.
    """

    def objective(variables, passes: Passes, images, labels, numbers):
        examples: Any = passes.batch.examples
        flagged = mask_of(examples.masks, images.shape[:3])[..., None].astype(images.dtype)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(passes.batch.keys)
        hidden = jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys)[:, None, None, None]
        shown = jnp.where(hidden & (flagged > 0), images.mean((1, 2), keepdims=True), images)
        logits, moved = passes.train(variables, passes.perturb(shown, labels))
        felt = flagged * slopes(passes, variables, images, labels).gradients
        losses = jax.vmap(cross_entropy)(logits, labels) + numbers.weight * _along(felt, felt)
        return Outcome(losses, logits, moved)

    return objective
