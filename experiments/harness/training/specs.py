"""Which networks a run trains: each, by kind, by the stack that it is trained in, and by the paper's panels."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from experiments.harness.settings.config import TrainingConfig


class Spec(NamedTuple):
    """How one network is trained; a standard one has no norm, no loss and epsilon 0. Seeds differ in their start."""

    norm: str | None = None
    loss: str | None = None
    epsilon: float = 0.0
    seed: int = 0

    @property
    def kind(self) -> str:
        """What all seeds of it are called, for instance `l2-xent-4`, or `standard`."""
        return f"{self.stack}-{self.epsilon:g}" if self.norm else self.stack

    @property
    def name(self) -> str:
        """Its kind, and from the second seed on the seed: `l2-xent-4-seed1`."""
        return f"{self.kind}-seed{self.seed}" if self.seed else self.kind

    @property
    def stack(self) -> str:
        """The stack it is trained in: networks of one norm and loss are one."""
        return f"{self.norm}-{self.loss}" if self.norm else "standard"

    @property
    def row(self) -> dict[str, Any]:
        """What tables say of it."""
        return {
            "network": self.kind,
            "train_norm": self.norm,
            "train_loss": self.loss,
            "train_epsilon": self.epsilon,
        }


def specs_of(config: TrainingConfig) -> list[Spec]:
    """The networks of an experiment: standard ones, then those of each norm and training loss; seeds innermost."""
    pairs = [(norm, loss) for norm in config.norms for loss in config.train_losses]
    radii = config.trained_radii
    kinds = [(None, None, 0.0), *((*pair, epsilon) for pair in pairs for epsilon in sorted(radii[pair[0]]))]
    return [Spec(*kind, seed) for kind in kinds for seed in range(config.network_seeds)]


def kinds_of(specs: Sequence[Spec]) -> dict[str, list[int]]:
    """Places of the networks of each kind, one a seed."""
    kinds: dict[str, list[int]] = {}
    for index, spec in enumerate(specs):
        kinds.setdefault(spec.kind, []).append(index)
    return kinds


def stacks_of(specs: Sequence[Spec]) -> list[list[Spec]]:
    """The networks by the stack they are trained in, in their order."""
    return [list(group) for _, group in groupby(specs, lambda spec: spec.stack)]


def groups_of(specs: Sequence[Spec]) -> dict[tuple, list[str]]:
    """The kinds of network of each group that the paper has a panel for: the standard one, then a norm and loss's."""
    pairs = dict.fromkeys((one.norm, one.loss) for one in specs if one.norm)
    kinds = {one.kind: (one.norm, one.loss) for one in specs}
    return {pair: [kind for kind, of in kinds.items() if of in (pair, (None, None))] for pair in pairs}
