"""Attacks confined to the manifold, or kept off it: any attack on another network."""

import jax.numpy as jnp
from jax import Array

from robgrad.attacks import Attack, InBall
from robgrad.manifolds.geometry import Manifold


def on_manifold(attack: Attack, decode) -> Attack:
    """An attack in the code's space, on what a decoder makes of it (Stutz, Hein and Schiele, 2019).

    Args:
      attack: built for codes: its pixel range is that of a code, for instance
        `pgd("l2", loss, steps, pixel_range=(-1.0, 1.0))` for codes in a box.
      decode: code to an image.

    Returns:
      An attack `(key, logits_fn, code, label, epsilon, step_size)` from a code to the attacked image; radius and step
      are in the code's units.
    """

    def attacked(key, logits_fn, code, label, epsilon, step_size):
        return decode(attack(key, lambda z: logits_fn(decode(z)), code, label, epsilon, step_size))

    return attacked


def off_manifold(attack: InBall, manifold: Manifold) -> InBall:
    """An attack whose perturbation has no part along the manifold's tangent space at the image.

    The attack is made on the network after the tangent part of what it changes is taken away. What is left may reach
    beyond ball or pixel range; it is shortened as a whole until it does not, which keeps its direction.

    Args:
      attack: one that says its norm and range, as all builders in `attacks` make them.
      manifold: whose tangent space is left alone.

    Raises:
      ValueError: if the attack says no norm.
    """
    if not isinstance(attack, InBall):
        raise ValueError(
            f"expected an attack of robgrad.attacks, which says its norm, got {type(attack).__name__}; wrap one of "
            "your own as attacks.InBall(run, norm, pixel_range)"
        )

    def run(key, logits_fn, image, label, epsilon, step_size):
        basis, _ = manifold.tangent_space(image)

        def across(point: Array) -> Array:
            moved = jnp.ravel(point - image)
            return image + (moved - basis @ (basis.T @ moved)).reshape(image.shape)

        point = across(attack(key, lambda x: logits_fn(across(x)), image, label, epsilon, step_size))
        # Where the tangent space is not finite there is no way across it.
        point = jnp.where(jnp.isfinite(basis).all(), point, image)
        return image + _share_inside(attack, image, point - image, epsilon) * (point - image)

    return InBall(run, attack.norm, attack.pixel_range)


def _share_inside(attack: InBall, image: Array, moved: Array, epsilon: Array) -> Array:
    """The largest share, at most 1, of a perturbation that stays in ball and pixel range."""
    length = attack.norm.length(moved)
    of_ball = jnp.where(length > epsilon, epsilon / jnp.where(length > 0, length, 1.0), 1.0)
    low, high = (jnp.asarray(bound, image.dtype) for bound in attack.pixel_range)
    room = jnp.where(moved > 0, high - image, image - low)
    of_range = jnp.where(moved != 0, room / jnp.where(moved != 0, jnp.abs(moved), 1.0), jnp.inf)
    return jnp.minimum(of_ball, jnp.min(of_range))
