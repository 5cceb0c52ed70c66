"""Standard and adversarial training of stacks of networks, and their evaluation."""

from robgrad.training.evaluation import accuracies, evaluate
from robgrad.training.loop import Checkpoints, DivergedError, Progress, StoppedError, fit
from robgrad.training.named import OBJECTIVES, ObjectiveKind
from robgrad.training.objectives import (
    Batch,
    Objective,
    Outcome,
    Passes,
    Step,
    StepSizes,
    TrainState,
    adam_update,
    adversarial,
    classifier_step,
    init_classifier,
    trades,
    typed_as,
)
from robgrad.training.regularisers import (
    curvature_penalty,
    gradient_alignment,
    gradient_penalty,
    local_linearity,
    masked_gradient_penalty,
    second_order,
)

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Checkpoints",
    "DivergedError",
    "Objective",
    "ObjectiveKind",
    "Outcome",
    "Passes",
    "Progress",
    "Step",
    "StepSizes",
    "StoppedError",
    "TrainState",
    "accuracies",
    "adam_update",
    "adversarial",
    "classifier_step",
    "curvature_penalty",
    "evaluate",
    "fit",
    "gradient_alignment",
    "gradient_penalty",
    "init_classifier",
    "local_linearity",
    "masked_gradient_penalty",
    "second_order",
    "trades",
    "typed_as",
]
