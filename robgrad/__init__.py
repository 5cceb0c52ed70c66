"""Adversarial robustness and gradient interpretability in JAX.

Families, in the order in which data passes; each imports only from those before it:

    backend       what XLA is told before JAX starts, so that its numbers are right
    intervals     95% confidence intervals that keep their word for few values
    compiling     how programs are compiled for a processor: with which convolutions
    stacking      many networks, examples and devices at once: the one place that maps over all three
    data          labelled images: digits, rendered shapes, TFDS sets, files, the two-Gaussian toy
    networks      layers and classifiers, batch norm included
    attacks       losses, norms, PGD, APGD, FAB, Square, AutoAttack
    training      objectives, compiled training of a stack of networks, evaluation
    manifolds     the image manifold: VAE-GAN, PCA, neighbours, a denoiser, a renderer, any encoder and decoder
    gradients     attributions of one image and controls; how far loss gradients lie along a manifold
    faithfulness  retraining (ROAR, KAR), imputation (ROAD), deletion, infidelity, agreement with a mask
    runs          run directories, checkpoints, trained networks, sets that a run's generator makes

A family is imported when it is first named, so that `import robgrad` costs next to nothing; import it before JAX first
computes, since with jaxlib 0.10.2 it switches off what gives wrong numbers on a CPU (see `backend`). The one call that
says how robust a network is stands here, too: `robgrad.robust_accuracy` is `attacks.robust_accuracy`.
"""

import importlib
from typing import TYPE_CHECKING

from robgrad import backend

if TYPE_CHECKING:
    from robgrad import (
        attacks,
        compiling,
        data,
        faithfulness,
        gradients,
        intervals,
        manifolds,
        networks,
        runs,
        stacking,
        training,
    )
    from robgrad.attacks import robust_accuracy as robust_accuracy

backend.set_safe_flags()

__version__ = "0.2.0"
__all__ = [
    "attacks",
    "backend",
    "compiling",
    "data",
    "faithfulness",
    "gradients",
    "intervals",
    "manifolds",
    "networks",
    "runs",
    "stacking",
    "training",
]


def __getattr__(name: str):
    if name == "robust_accuracy":
        return __getattr__("attacks").robust_accuracy
    if name in __all__:
        return importlib.import_module(f"robgrad.{name}")
    raise AttributeError(f"module 'robgrad' has no attribute '{name}'; it has {', '.join(__all__)} and robust_accuracy")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "robust_accuracy"])
