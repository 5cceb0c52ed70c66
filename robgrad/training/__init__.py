"""Standard and adversarial training of stacks of networks, and their evaluation."""

from robgrad.training.evaluation import accuracies, evaluate
from robgrad.training.loop import Checkpoints, DivergedError, Progress, StoppedError, fit
from robgrad.training.objectives import (
    OBJECTIVES,
    Batch,
    Objective,
    ObjectiveKind,
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
    "evaluate",
    "fit",
    "init_classifier",
    "trades",
]
