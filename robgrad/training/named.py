"""Ways to train by name, for flags: what is descended, and what its attack must be.

To add one is to write an `Objective`, in a module of its own, and name it here: the contract test and the experiments'
flags read that.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from robgrad.attacks import Loss, Norm, cross_entropy, kl_divergence
from robgrad.training.objectives import Objective, adversarial, trades
from robgrad.training.regularisers import (
    curvature_penalty,
    gradient_alignment,
    gradient_penalty,
    local_linearity,
    second_order,
)
from robgrad.training.variants import mart, noisy_start, towards_another, weight_perturbed


class ObjectiveKind(NamedTuple):
    """An objective that experiments offer by flag.

    Attributes:
      build: makes it, for the norm of the attack.
      attack_loss: the loss that its attack ascends, or that it makes its term of; None for the configuration's.
      random_start: whether its attack cannot start at the image, or the deviation of the normal noise it starts from.
      steps: of its attack, where the objective says how many; None for the configuration's.
      step: of its attack, as a multiple of the radius; None for the configuration's step size.
      weight: of its second term, where none is given.
      replays: of each batch, where the attack is a by-product of training (`free_step`), which builds no objective.
      settings: names of the settings of a configuration that it alone depends on.
    """

    build: Callable[[Norm], Objective]
    attack_loss: Loss | None = None
    random_start: bool | float = False
    steps: int | None = None
    step: float | None = None
    weight: float = 6.0
    replays: int = 0
    settings: tuple[str, ...] = ()


_WEIGHT = ("objective_weight",)
_penalty = partial(ObjectiveKind, attack_loss=cross_entropy, weight=1.0, settings=_WEIGHT)
OBJECTIVES: dict[str, ObjectiveKind] = {
    "adversarial": ObjectiveKind(lambda norm: adversarial()),
    # Fast training (Wong, Rice and Kolter, 2020): one step of 1.25 epsilon from a random start.
    "single-step": ObjectiveKind(lambda norm: adversarial(), random_start=True, steps=1, step=1.25),
    # 0.001 in the pixel range [0, 1], as its authors have it, is 0.002 here.
    "trades": ObjectiveKind(lambda norm: trades(), kl_divergence, random_start=0.002, settings=_WEIGHT),
    "mart": ObjectiveKind(lambda norm: mart(), cross_entropy, random_start=0.002, weight=5.0, settings=_WEIGHT),
    "awp": ObjectiveKind(lambda norm: weight_perturbed(adversarial())),
    "awp-trades": ObjectiveKind(
        lambda norm: weight_perturbed(trades()), kl_divergence, random_start=0.002, settings=_WEIGHT
    ),
    "n-fgsm": ObjectiveKind(noisy_start, steps=1, step=1.0),
    "free": ObjectiveKind(lambda norm: adversarial(), cross_entropy, replays=4),
    "targeted": ObjectiveKind(lambda norm: towards_another()),
    "gradient-penalty": _penalty(gradient_penalty),
    "cure": _penalty(curvature_penalty),
    "grad-align": _penalty(gradient_alignment, steps=1, step=1.0, weight=0.2),
    "llr": _penalty(local_linearity, weight=4.0),
    "scorpio-1": _penalty(second_order),
    "scorpio-5": _penalty(partial(second_order, iterations=5)),
    "scorpio-5-differences": _penalty(partial(second_order, iterations=5, difference=0.1)),
}
