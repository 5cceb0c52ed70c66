"""Attacks confined to the manifold, or kept off it: any attack on another network."""

import jax.numpy as jnp
from jax import Array

from robgrad.attacks import Attack
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


def off_manifold(attack: Attack, manifold: Manifold) -> Attack:
    """An attack whose perturbation has no part along the manifold's tangent space at the image.

    The attack is made on the network after the tangent part of what it changes is taken away. Clipping to the pixel
    range comes before that, so that what is returned may leave the range by what the part along was.
    """

    def attacked(key, logits_fn, image, label, epsilon, step_size):
        basis, _ = manifold.tangent_space(image)

        def across(point: Array) -> Array:
            moved = jnp.ravel(point - image)
            return image + (moved - basis @ (basis.T @ moved)).reshape(image.shape)

        return across(attack(key, lambda x: logits_fn(across(x)), image, label, epsilon, step_size))

    return attacked
