"""Standard and adversarial training of stacks of networks, and their evaluation."""

from robgrad.training.augmentation import AUGMENTATIONS, Augmentation, augmentation_named, composed, crop, cutout, flip
from robgrad.training.averaging import Averaging, Best, kept, with_average, with_best
from robgrad.training.evaluation import accuracies, evaluate, held_out
from robgrad.training.free import free_step
from robgrad.training.labelling import Labelling
from robgrad.training.loop import Checkpoints, DivergedError, Progress, StoppedError, fit
from robgrad.training.named import OBJECTIVES, ObjectiveKind
from robgrad.training.objectives import (
    Batch,
    Objective,
    Outcome,
    Passes,
    Step,
    StepSizes,
    adversarial,
    classifier_step,
    init_classifier,
    trades,
    typed_as,
)
from robgrad.training.optimizers import OPTIMIZERS, SCHEDULES, Optimizer, optimizer_named, plain_adam, updated
from robgrad.training.recipes import Recipe
from robgrad.training.regularisers import (
    curvature_penalty,
    gradient_alignment,
    gradient_penalty,
    local_linearity,
    masked_gradient_penalty,
    second_order,
)
from robgrad.training.state import TrainState
from robgrad.training.variants import mart, noisy_start, towards_another, weight_perturbed

__all__ = [
    "AUGMENTATIONS",
    "OBJECTIVES",
    "OPTIMIZERS",
    "SCHEDULES",
    "Augmentation",
    "Averaging",
    "Batch",
    "Best",
    "Checkpoints",
    "DivergedError",
    "Labelling",
    "Objective",
    "ObjectiveKind",
    "Optimizer",
    "Outcome",
    "Passes",
    "Progress",
    "Recipe",
    "Step",
    "StepSizes",
    "StoppedError",
    "TrainState",
    "accuracies",
    "adversarial",
    "augmentation_named",
    "classifier_step",
    "composed",
    "crop",
    "curvature_penalty",
    "cutout",
    "evaluate",
    "fit",
    "flip",
    "free_step",
    "gradient_alignment",
    "gradient_penalty",
    "held_out",
    "init_classifier",
    "kept",
    "local_linearity",
    "mart",
    "masked_gradient_penalty",
    "noisy_start",
    "optimizer_named",
    "plain_adam",
    "second_order",
    "towards_another",
    "trades",
    "typed_as",
    "updated",
    "weight_perturbed",
    "with_average",
    "with_best",
]
