"""Trained classifiers as one value: an architecture, variables in a stack, and names in the same order."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from robgrad import stacking
from robgrad.networks import LogitsFn, Network, logits_fn


class Classifiers(NamedTuple):
    """Trained classifiers of one architecture.

    Attributes:
      network: the architecture.
      variables: of all of them, a stack with a leading axis.
      names: of each, in the stack's order.
      about: what else is known of them.
    """

    network: nn.Module | Network
    variables: Any
    names: tuple[str, ...]
    about: Mapping[str, Any] = {}

    def at(self, place: int) -> Any:
        """The variables of the one at a place."""
        return stacking.replica(self.variables, place)

    def take(self, places: Sequence[int]) -> "Classifiers":
        """Those at some places, in the order given."""
        names = tuple(self.names[place] for place in places)
        return self._replace(variables=stacking.replicas(self.variables, places), names=names)

    def logits_fn(self, name: str) -> LogitsFn:
        """One of them as a function of one image `[H, W, C]` in [-1, 1] to logits.

        Raises:
          ValueError: if none has that name.
        """
        if name not in self.names:
            raise ValueError(f"expected a network of {', '.join(self.names)}, got '{name}'")
        return logits_fn(self.network, self.at(self.names.index(name)))


def joined(parts: Sequence[Classifiers]) -> Classifiers:
    """Several stacks of one architecture as one."""
    names = tuple(name for part in parts for name in part.names)
    return Classifiers(parts[0].network, stacking.concatenate([part.variables for part in parts]), names)
