"""The attributions that experiments offer by flag, with their default choices, by name.

To add one is to write it, in a module of its own, and to name it in a row of `_FORMS`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from robgrad.gradients import controls
from robgrad.gradients.attributions import (
    Attribution,
    gradient_random_projection,
    of_gradient,
)
from robgrad.gradients.averages import integrated_gradients, sliding_occlusion, smoothgrad
from robgrad.gradients.outputs import Pixels, absolute, by_channel, signed
from robgrad.gradients.propagation import deep_lift, grad_cam, guided_backpropagation
from robgrad.gradients.relevance import lrp
from robgrad.gradients.surrogate import lime


class Forms(NamedTuple):
    """An attribution in its two forms.

    Attributes:
      ranking: `[H, W]`, how much each pixel matters, as rankings of pixels want it.
      signed: `[H, W, C]` or `[H, W]`, for or against what is explained, as `faithfulness.infidelity` wants it; the
        ranking itself where it has no signs by its nature.
      pixels: what makes the ranking of the signed form; None where it is another computation.
    """

    ranking: Attribution
    signed: Attribution
    pixels: Pixels | None = None


def _forms(build: Callable[..., Attribution], *arguments, ranking: Pixels = absolute, **options) -> Forms:
    signed_form = build(*arguments, pixels=by_channel, **options)
    return Forms(build(*arguments, pixels=ranking, **options), signed_form, ranking)


def _alike(attribution: Attribution) -> Forms:
    return Forms(attribution, attribution)


_FORMS: dict[str, Forms] = {
    "gradient": _forms(of_gradient),
    "gradient_times_input": _forms(of_gradient, times_input=True),
    "gradient_times_input_from_black": _forms(of_gradient, times_input=True, origin=-1.0),
    "integrated_gradients": _forms(integrated_gradients),
    "smoothgrad": _forms(smoothgrad),
    "smoothgrad_square": _alike(smoothgrad(form="square")),
    "smoothgrad_variance": _alike(smoothgrad(form="variance")),
    "occlusion": _forms(sliding_occlusion),
    "deep_lift": _forms(deep_lift),
    "lrp": _forms(lrp, ranking=signed),
    "lrp_epsilon": _forms(lrp, "epsilon", ranking=signed),
    "lrp_z_plus": _forms(lrp, "z+", ranking=signed),
    "grad_cam": _alike(grad_cam()),
    "lime": _alike(lime()),
    "guided_backpropagation": _forms(guided_backpropagation),
    # Controls, which know nothing, or only the image.
    "gradient_random_projection": Forms(
        gradient_random_projection, partial(gradient_random_projection, pixels=by_channel), absolute
    ),
    "gradient_blurred": Forms(controls.blurred(of_gradient()), controls.blurred(of_gradient(pixels=signed))),
    "noise_blurred": _alike(controls.blurred_noise()),
    "edges": _alike(controls.edges),
}
ATTRIBUTIONS: dict[str, Attribution] = {name: forms.ranking for name, forms in _FORMS.items()}
SIGNED: dict[str, Attribution] = {name: forms.signed for name, forms in _FORMS.items()}
# What makes a ranking of a signed form, so that who wants both computes one.
PIXELS: dict[str, Pixels] = {name: forms.pixels for name, forms in _FORMS.items() if forms.pixels is not None}
# Those that know nothing of the network, or of what it does to the image.
CONTROLS = ("gradient_random_projection", "gradient_blurred", "noise_blurred", "edges")
