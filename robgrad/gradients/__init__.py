"""What input gradients say: attributions of one image, and how far they lie along a manifold."""

from robgrad.gradients.alignment import Alignment, align, analyser
from robgrad.gradients.attributions import (
    ATTRIBUTIONS,
    Attribution,
    coin_map,
    gradient,
    gradient_random_projection,
    gradient_times_input,
    key_named,
    loss_gradient,
    random,
    rank_map,
)

__all__ = [
    "ATTRIBUTIONS",
    "Alignment",
    "Attribution",
    "align",
    "analyser",
    "coin_map",
    "gradient",
    "gradient_random_projection",
    "gradient_times_input",
    "key_named",
    "loss_gradient",
    "random",
    "rank_map",
]
