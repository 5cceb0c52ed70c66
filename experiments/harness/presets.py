"""Sizes and constants of training, by preset and data set; experiments add their own.

`paper` is the paper's protocol, in its pixel range [-1, 1]; where the published code had a quirk (no
shuffling, a sampled projection, a CW mask of zero) the sound choice is the default and the quirk a flag.
`quick` is the same code, smaller, for two CPU cores; `modern` is how robust networks are trained today. Every number
is open to its own flag.
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

from experiments.harness.config import Presets

Values = dict[str, Any]

_MNIST: Values = {
    "held_out": 5000,
    "train_examples": 55000,
    "test_examples": 10000,
    "radii": {"l2": (1.0, 2.0, 4.0), "linf": (0.05, 0.1, 0.2)},
    "step_sizes": {"l2": 2.0, "linf": 0.02},
    "standard_epochs": 5,
    "epochs": 5,
}
_CIFAR = _MNIST | {
    "held_out": 0,
    "train_examples": 50000,
    "radii": {"l2": (0.1, 0.4, 1.6), "linf": (0.005, 0.01, 0.02)},
    "standard_epochs": 20,
    "epochs": 20,
}
_QUICK_28: Values = {
    "train_examples": 5000,
    "test_examples": 256,
    "train_losses": ("xent",),
    "step_sizes": {"l2": 2.0, "linf": 0.1},
    "attack_steps": 3,
    "epochs": 2,
}
_QUICK_32 = _QUICK_28 | {
    "train_examples": 4000,
    "test_examples": 100,
    "step_sizes": {"l2": 2.0, "linf": 0.02},
    "standard_epochs": 5,
}
_DIGITS: Values = {
    "held_out": 0,
    "train_examples": 1437,
    "test_examples": 360,
    "radii": {"l2": (0.5, 1.0, 2.0), "linf": (0.1, 0.2, 0.4)},
    "step_sizes": {"l2": 2.0, "linf": 0.1},
    "attack_steps": 10,
    "standard_epochs": 15,
    "epochs": 15,
    "batch_size": 50,
}
# Radii below half the distance between classes, 1.05 at the median on 16x16 pixels and 2.2 on 28x28.
_SHAPES: Values = {
    "held_out": 0,
    "train_examples": 3000,
    "test_examples": 300,
    "radii": {"l2": (0.25, 0.5, 1.0), "linf": (0.025, 0.05, 0.1)},
    "step_sizes": {"l2": 0.5, "linf": 0.05},
    "attack_steps": 5,
    "standard_epochs": 10,
    "epochs": 10,
    "batch_size": 50,
}
_SHAPES_28 = _MNIST | _QUICK_28 | {"held_out": 0, "radii": {"l2": (0.5, 1.0, 2.0), "linf": (0.025, 0.05, 0.1)}}
# Today's training, in this range: Rice, Wong and Kolter (2020), PGD-10 at l2 0.5 and l-inf 8/255 of [0, 1].
# Published of PreActResNet-18 in l2: 88.67% clean, 67.68% under AutoAttack (RobustBench).
_MODERN: Values = _CIFAR | {
    "held_out": 1000,
    "train_examples": 49000,
    "network": "preact-resnet-18",
    "train_losses": ("xent",),
    "radii": {"l2": (1.0,), "linf": (16 / 255,)},
    "step_sizes": {"l2": 30 / 255, "linf": 4 / 255},
    "attack_steps": 10,
    "standard_epochs": 200,
    "epochs": 200,
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "piecewise",
    "weight_decay": 5e-4,
    "augmentation": ("crop:4", "flip"),
    "keep": "best",
}
# What an experiment says of the one is said of the other.
_LIKE = {"shapes-16": "digits", "shapes": "fashion_mnist"}
TRAINING: Mapping[str, Mapping[str, Values]] = {
    "paper": {"mnist": _MNIST, "fashion_mnist": _MNIST, "cifar10": _CIFAR},
    "modern": {"cifar10": _MODERN},
    "quick": {
        "digits": _DIGITS,
        "mnist": _MNIST | _QUICK_28,
        "fashion_mnist": _MNIST | _QUICK_28,
        "cifar10": _CIFAR | _QUICK_32,
        "shapes-16": _SHAPES,
        "shapes": _SHAPES_28,
    },
}

# AutoAttack's short version on few images at quick size, else the defaults: the standard one on 1,000.
_SHORT: Values = {"auto_attack": "short", "attacked_examples": 50}
AUTO_ATTACK: Mapping[str, Mapping[str, Values]] = {
    "paper": {},
    "quick": {name: _SHORT for name in TRAINING["quick"]} | {"digits": _SHORT | {"attacked_examples": 100}},
}
# Accuracies beside other measurements, at the weakest l2 radius.
_WEAKEST = {
    "mnist": {"robust_epsilon": 1.0},
    "fashion_mnist": {"robust_epsilon": 1.0},
    "cifar10": {"robust_epsilon": 0.4},
}
EVALUATION: Mapping[str, Mapping[str, Values]] = {
    "paper": _WEAKEST,
    "quick": {name: values | {"pgd_steps": 10} for name, values in _WEAKEST.items()}
    | {"digits": {"robust_epsilon": 0.5, "pgd_steps": 20}},
}


def extended(*more: Mapping[str, Mapping[str, Values]]) -> Presets:
    """The presets of an experiment: those of training, with more or other values for each preset and data set."""

    def of(preset: str, name: str) -> Values:
        tables = [table.get(preset, table["paper"]) for table in more]
        said = (values.get(name, values.get(_LIKE.get(name, ""), {})) for values in tables)
        return reduce(or_, said, TRAINING[preset][name])

    return {preset: {name: of(preset, name) for name in table} for preset, table in TRAINING.items()}
