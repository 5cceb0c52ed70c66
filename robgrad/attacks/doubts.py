"""What an evaluation by AutoAttack should not be believed for: masked gradients, random outputs, odd pixel ranges."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from robgrad.data import PIXEL_RANGE
from robgrad.data.checks import HALF_RANGE, Range, half_range
from robgrad.networks import predicted


def predictions(logits: np.ndarray) -> np.ndarray:
    """`networks.predicted`, back on the host."""
    return np.asarray(predicted(jnp.asarray(logits)))


def not_finite(logits: np.ndarray, what: str) -> list[str]:
    """A line where a network gives some images no class."""
    count = int((predictions(logits) < 0).sum())
    line = f"the outputs are not finite on {count} of {len(logits)} {what}: they are of no class, and count as wrong"
    return [line] if count else []


def not_risen(before: np.ndarray, after: np.ndarray, goals: np.ndarray, targeted: bool) -> list[str]:
    """A line where ascending the cross-entropy has not raised it.

    Args:
      before, after: logits `[N, C]` of images that APGD left standing, and of where it ended.
      goals: `[N]`, the labels that it went away from, or the targets that it went towards.
      targeted: which of the two.
    """
    sign = -1 if targeted else 1
    count = int(np.sum(~(sign * _excess(after, goals) > sign * _excess(before, goals))))
    line = f"the loss that apgd-ce ascends has not risen on {count} of {len(after)} images that it left standing"
    return [line] if count > 0.05 * len(after) else []


def of_outputs(images: np.ndarray, logits: np.ndarray, again: np.ndarray, pixel_range: Range) -> list[str]:
    """Lines about the images and the network's outputs.

    Args:
      images, logits: all of them.
      again: logits of the first ones, asked for once more.
      pixel_range: that was said.
    """
    notes = not_finite(logits, "images")
    if pixel_range == PIXEL_RANGE and half_range(images):
        notes.append(HALF_RANGE)
    notes += of_probabilities(logits)
    if not np.allclose(again, logits[: len(again)], rtol=1e-4, atol=1e-5, equal_nan=True):
        notes.append("the outputs differ between two calls: the network is random; use version='rand'")
    return notes


def of_probabilities(logits: np.ndarray) -> list[str]:
    """A line where outputs `[N, C]` are positive and sum to 1."""
    alike = np.all(logits >= 0) and np.allclose(logits.sum(1), 1.0, atol=1e-4)
    line = "the outputs look like probabilities: expected logits; gradients of probabilities vanish"
    return [line] if alike else []


def of_slopes(slopes: np.ndarray) -> list[str]:
    """Lines about loss gradients `[N, ...]` that vanish or are not finite."""
    flat = slopes.reshape(len(slopes), -1)
    finite = np.isfinite(flat).all(1)
    zero = finite & (np.abs(flat).max(1) == 0)
    return [
        f"the loss gradient is {what} on {count} of {len(flat)} images: gradients are masked, and attacks that follow "
        "them say little"
        for count, what in ((int(zero.sum()), "zero"), (int((~finite).sum()), "not finite"))
        if count > 0.05 * len(flat)
    ]


def of_standing(standing: Mapping[str, int], count: int, moves: bool) -> list[str]:
    """Lines about what each attack left standing of `count` images, of which an epsilon above 0 `moves` some."""
    notes = []
    by_gradients = [left for name, left in standing.items() if name not in ("clean", "square")]
    if "square" in standing and by_gradients:
        more = min(by_gradients) - standing["square"]
        if more > 0.002 * count:
            notes.append(f"Square, which sees no gradient, broke {more} images that attacks by gradient could not")
    left = min(standing.values())
    if moves and 0 < left == standing["clean"] and count > 20:
        notes.append("no attack broke any image: expected some, unless epsilon is tiny")
    return notes


def _excess(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """logsumexp_{j != y} z_j - z_y, with which the cross-entropy rises, in double precision."""
    own = np.arange(logits.shape[1]) == labels[:, None]
    others = np.where(own, -np.inf, logits.astype(np.float64))
    with np.errstate(invalid="ignore"):
        return logsumexp(others, axis=1) - logits[own]
