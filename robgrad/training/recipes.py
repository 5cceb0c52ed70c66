"""A recipe: how a network is trained, as plain values that have a name, an equality and a step.

What differs between the networks of one stack, radii, rates and weights, are the step's numbers (`StepSizes`); what a
program is compiled for is the recipe. Two networks with equal recipes, numbers, data and seed are the same network.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import flax.linen as nn
import optax
from jax import Array

from robgrad.attacks import ATTACKS, NORMS, Attack, Loss, cross_entropy, no_attack, norm_named, pgd
from robgrad.data.checks import checked_count
from robgrad.networks import Network
from robgrad.training.augmentation import augmentation_named
from robgrad.training.averaging import Averaging, with_average
from robgrad.training.free import free_step
from robgrad.training.labelling import Labelling, checked_labelling
from robgrad.training.named import OBJECTIVES
from robgrad.training.objectives import Objective, Step, classifier_step, init_classifier
from robgrad.training.optimizers import Optimizer, optimizer_named
from robgrad.training.state import TrainState


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
      norm: of the attack, a name in `attacks.NORMS`; None for standard training, which has no attack and no objective.
      objective: a name in `OBJECTIVES`.
      attack: a name in `attacks.ATTACKS`.
      attack_steps: of the attack, where the objective does not say how many.
      optimizer, momentum, schedule: see `optimizer_named`.
      clip: greatest l2 norm of the gradient; 0 for any.
      augmentation: names, with a number of pixels where wanted, as in `("crop:2", "flip")`; see `augmentation_named`.
      smoothing, mixup: see `Labelling`.
      average: decay of the average of the weights that is kept, see `Averaging`; 1 for the plain mean, 0 for none.
      average_from: share of the steps before the first weights that count in it.
      ramp: share of the steps over which the attack's radius and step grow linearly from 0; 0 for none.

    Radii, steps, rates and weights are the step's numbers: `StepSizes()` alone has radius 0 and the weight 0 of an
    objective's second term, and Adam's rate of 1e-3, which is too small for `sgd`.

    Example:
      >>> import jax
      >>> from robgrad import data, networks, stacking, training
      >>> digits, network = data.load("digits"), networks.digits_cnn()
      >>> recipe = training.Recipe("l2", objective="trades", attack_steps=2, optimizer="sgd")
      >>> steps = 2 * (len(digits.train.labels) // 50)  # epochs, times batches of 50
      >>> states = stacking.stack([recipe.begin(network, (8, 8, 1), jax.random.key(0), steps)])
      >>> sizes = training.StepSizes(epsilon=0.5, step_size=0.25, learning_rate=0.05, weight=6.0)
      >>> trained = training.fit(recipe.step(network, steps), states, sizes, digits.train, batch_size=50, epochs=2)
      >>> variables = training.kept(trained)
    """

    norm: str | None = None
    objective: str = "adversarial"
    attack: str = "pgd"
    attack_steps: int = 10
    optimizer: str = "adam"
    momentum: float = 0.9
    schedule: str = "constant"
    clip: float = 0.0
    augmentation: tuple[str, ...] = ()
    smoothing: float = 0.0
    mixup: float = 0.0
    average: float = 0.0
    average_from: float = 0.0
    ramp: float = 0.0

    def __post_init__(self):
        """Refuses what cannot be meant, in a line."""
        if self.objective not in OBJECTIVES:
            raise ValueError(f"expected an objective of {', '.join(OBJECTIVES)}, got '{self.objective}'")
        if self.attack not in ATTACKS:
            raise ValueError(f"expected an attack of {', '.join(ATTACKS)}, got '{self.attack}'")
        if self.norm is not None:
            norm_named(self.norm)
        checked_count("attack step", self.attack_steps)
        self.optimizer_for(1)
        augmentation_named(self.augmentation)
        object.__setattr__(self, "augmentation", tuple(self.augmentation))
        checked_labelling(Labelling(self.smoothing, self.mixup))
        for name in ("average", "average_from", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} in [0, 1], got {getattr(self, name)}")
        if self.norm and OBJECTIVES[self.objective].replays and (self.changed - {"norm", "objective", *_PLAIN}):
            named = ", ".join(sorted(self.changed - {"norm", "objective", *_PLAIN}))
            raise ValueError(f"objective {self.objective}: expected none of {named}, which its step does not have")

    @property
    def changed(self) -> set[str]:
        """The names of what is not at its default."""
        return {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}

    @property
    def name(self) -> str:
        """What it is, in a few words: its norm and what is not at its default, for instance `l2, sgd, cosine`."""
        more = [f"{name} {getattr(self, name)}" for name in _ORDER if name in self.changed]
        named = {id(norm): name for name, norm in NORMS.items()}
        norm = self.norm if isinstance(self.norm, str | None) else named.get(id(self.norm), "a norm")
        return ", ".join([norm or "standard", *more])

    @property
    def passes(self) -> int:
        """Gradients that the attack takes of each image in a step, for `networks.intensity`."""
        kind = OBJECTIVES[self.objective]
        return 0 if self.norm is None or kind.replays else kind.steps or self.attack_steps

    def optimizer_for(self, steps: int) -> Optimizer | None:
        """The optimizer of a training of so many steps; None for plain Adam, the steps' own."""
        if not self.changed & {"optimizer", "momentum", "schedule", "clip"}:
            return None
        options: dict[str, Any] = {"momentum": self.momentum, "clip": self.clip or None}
        updates = self.updates(steps)
        return optimizer_named(self.optimizer, schedule=self.schedule, steps=updates, **options)

    def updates(self, steps: int) -> int:
        """Updates of the optimizer in so many steps."""
        return steps * (OBJECTIVES[self.objective].replays or 1) if self.norm else steps

    def attack_with(self, loss: Loss) -> Attack:
        """The attack of each step, which ascends a loss where the objective has none of its own."""
        if self.norm is None:
            return no_attack
        kind = OBJECTIVES[self.objective]
        ascended, steps = kind.attack_loss or loss, kind.steps or self.attack_steps
        if kind.random_start and self.attack == "pgd":
            return pgd(self.norm, ascended, steps, random_start=kind.random_start)
        return ATTACKS[self.attack](self.norm, ascended, steps)

    def begin(self, network: nn.Module | Network, image_shape: Sequence[int], key: Array, steps: int) -> TrainState:
        """A fresh network with what its step of a training of so many steps keeps."""
        state = init_classifier(network, image_shape, key, self.optimizer_for(steps))
        return with_average(state) if self.average else state

    def step(
        self,
        network: nn.Module | Network,
        steps: int,
        loss: Loss = cross_entropy,
        objective: Objective | None = None,
    ) -> Step:
        """The step of `fit` for a training of so many steps; the same value each time, so that it compiles once.

        Args:
          network: what is trained.
          steps: of the whole training, by which schedule, ramp and average are spread.
          loss: what the attack ascends, where the objective has no loss of its own.
          objective: in place of the one by name.
        """
        return _step(self, network, steps, loss, objective)


_ORDER = [field.name for field in dataclasses.fields(Recipe) if field.name != "norm"]
# What a step of free training has.
_PLAIN = ("attack", "attack_steps", "optimizer", "momentum", "schedule", "clip")


@cache
def _step(recipe: Recipe, network: nn.Module | Network, steps: int, loss: Loss, objective: Objective | None) -> Step:
    kind, optimizer = OBJECTIVES[recipe.objective], recipe.optimizer_for(steps)
    if recipe.norm and kind.replays:
        return free_step(network, recipe.norm, kind.replays, optimizer=optimizer)
    if objective is None and recipe.norm:
        objective = kind.build(norm_named(recipe.norm))
    labelling = Labelling(recipe.smoothing, recipe.mixup) if recipe.smoothing or recipe.mixup else None
    start = round(recipe.average_from * steps)
    return classifier_step(
        network,
        recipe.attack_with(loss),
        objective,
        optimizer=optimizer,
        augmentation=augmentation_named(recipe.augmentation),
        labelling=labelling,
        averaging=Averaging(recipe.average, start) if recipe.average else None,
        ramp=optax.linear_schedule(0.0, 1.0, max(1, round(recipe.ramp * steps))) if recipe.ramp else None,
    )
