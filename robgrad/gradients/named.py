"""The attributions that experiments offer by flag, with their default choices, by name."""

from robgrad.gradients import controls
from robgrad.gradients.attributions import (
    Attribution,
    gradient,
    gradient_random_projection,
    gradient_times_input,
    of_gradient,
)
from robgrad.gradients.averages import integrated_gradients, sliding_occlusion, smoothgrad
from robgrad.gradients.propagation import deep_lift, grad_cam, guided_backpropagation, lrp
from robgrad.gradients.surrogate import lime

ATTRIBUTIONS: dict[str, Attribution] = {
    "gradient": gradient,
    "gradient_times_input": gradient_times_input,
    "gradient_times_input_from_black": of_gradient(times_input=True, origin=-1.0),
    "integrated_gradients": integrated_gradients(),
    "smoothgrad": smoothgrad(),
    "smoothgrad_square": smoothgrad(form="square"),
    "smoothgrad_variance": smoothgrad(form="variance"),
    "occlusion": sliding_occlusion(),
    "deep_lift": deep_lift(),
    "lrp": lrp(),
    "lrp_epsilon": lrp("epsilon"),
    "lrp_z_plus": lrp("z+"),
    "grad_cam": grad_cam(),
    "lime": lime(),
    "guided_backpropagation": guided_backpropagation(),
    # Controls, which know nothing, or only the image.
    "gradient_random_projection": gradient_random_projection,
    "gradient_blurred": controls.blurred(gradient),
    "noise_blurred": controls.blurred_noise(),
    "edges": controls.edges,
}
# Those that know nothing of the network, or of what it does to the image.
CONTROLS = ("gradient_random_projection", "gradient_blurred", "noise_blurred", "edges")
# Those that propagate through layers, and so need one of the package's networks without batch norm.
LAYERED = ("deep_lift", "lrp", "lrp_epsilon", "lrp_z_plus", "grad_cam", "guided_backpropagation")
