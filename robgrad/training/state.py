"""What a training run continues from."""

from typing import Any, NamedTuple

from jax import Array


class TrainState(NamedTuple):
    """Everything a run continues from.

    Attributes:
      variables: of the network.
      opt_state: of the optimizer.
      key: of the run.
      step: steps taken.
      average: of the variables over steps, where the step keeps one (`averaging.Averaging`); else None.
      best: the variables at the epoch of the best score, where `fit` keeps them (`averaging.Best`); else None.
    """

    variables: Any
    opt_state: Any
    key: Array
    step: Array
    average: Any = None
    best: Any = None
