"""What input gradients say: attributions of one image, and how far they lie along a manifold."""

from robgrad.gradients import controls, outputs
from robgrad.gradients.alignment import Alignment, align, analyser
from robgrad.gradients.attributions import (
    Attribution,
    coin_map,
    gradient,
    gradient_random_projection,
    gradient_times_input,
    key_named,
    loss_gradient,
    of_gradient,
    random,
    rank_map,
    smoothed,
    tangent_projected,
)
from robgrad.gradients.averages import (
    completeness_error,
    expected_gradients,
    gradient_shap,
    integrated,
    integrated_gradients,
    sliding_occlusion,
    smoothgrad,
)
from robgrad.gradients.measures import Sensitivity, covariance_chance, image_alignment, sensitivity, tangent_fraction
from robgrad.gradients.named import ATTRIBUTIONS, CONTROLS, PIXELS, SIGNED
from robgrad.gradients.propagation import deep_lift, grad_cam, guided_backpropagation
from robgrad.gradients.relevance import lrp
from robgrad.gradients.surrogate import Regions, grid_regions, lime, superpixels, surrogate

__all__ = [
    "ATTRIBUTIONS",
    "CONTROLS",
    "PIXELS",
    "SIGNED",
    "Alignment",
    "Attribution",
    "Regions",
    "Sensitivity",
    "align",
    "analyser",
    "coin_map",
    "completeness_error",
    "controls",
    "covariance_chance",
    "deep_lift",
    "expected_gradients",
    "grad_cam",
    "gradient",
    "gradient_random_projection",
    "gradient_shap",
    "gradient_times_input",
    "grid_regions",
    "guided_backpropagation",
    "image_alignment",
    "integrated",
    "integrated_gradients",
    "key_named",
    "lime",
    "loss_gradient",
    "lrp",
    "of_gradient",
    "outputs",
    "random",
    "rank_map",
    "sensitivity",
    "sliding_occlusion",
    "smoothed",
    "smoothgrad",
    "superpixels",
    "surrogate",
    "tangent_fraction",
    "tangent_projected",
]
