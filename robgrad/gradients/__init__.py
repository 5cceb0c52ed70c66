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
    tangent_projected,
)
from robgrad.gradients.measures import Sensitivity, covariance_chance, image_alignment, sensitivity, tangent_fraction

__all__ = [
    "ATTRIBUTIONS",
    "Alignment",
    "Attribution",
    "Sensitivity",
    "align",
    "analyser",
    "coin_map",
    "covariance_chance",
    "gradient",
    "gradient_random_projection",
    "gradient_times_input",
    "image_alignment",
    "key_named",
    "loss_gradient",
    "random",
    "rank_map",
    "sensitivity",
    "tangent_fraction",
    "tangent_projected",
]
