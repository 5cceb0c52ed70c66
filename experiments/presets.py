"""The sizes and constants of each experiment: its configuration, and one preset a data set.

`paper` is the paper's protocol, in its pixel range [-1, 1]; where the published code had a quirk (no
shuffling, a sampled projection, a CW mask of zero) the sound choice is the default and the quirk a flag.
`quick` is the same code, smaller, for two CPU cores. Every number is open to its own flag (`settings`).
"""

from dataclasses import dataclass
from typing import Any

LOSSES = ("xent", "cw")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the numbers of every experiment depend on, as recorded in `config.json`; radii and steps in pixel units."""

    dataset: str
    preset: str
    seed: int
    matmul_precision: str
    held_out: int
    train_examples: int
    test_examples: int
    norms: tuple[str, ...] = ("l2", "linf")
    train_losses: tuple[str, ...] = LOSSES
    l2_epsilons: tuple[float, ...]
    linf_epsilons: tuple[float, ...]
    l2_step_size: float = 2.0
    linf_step_size: float = 0.02
    attack_steps: int = 40
    standard_epochs: int
    epochs: int
    batch_size: int = 100
    learning_rate: float = 1e-3
    robust_epsilon: float
    robust_step_size: float = 2.0
    robust_steps: int = 40
    shuffle: bool = True
    zero_mask: bool = False
    chunk: int = 100


@dataclass(frozen=True, kw_only=True)
class ManifoldConfig(Config):
    """Section 2.1: the VAE-GAN and the analysis attack too."""

    vae_gan_epochs: int
    vae_gan_batch_size: int = 100
    vae_gan_learning_rate: float = 5e-4
    reconstruction_weight: float
    discriminator_steps: int = 1
    analysis_epsilon: float = 12.0
    analysis_losses: tuple[str, ...] = LOSSES
    analysis_step_size: float = 2.0
    analysis_steps: int = 40
    sampled_projection: bool = False


@dataclass(frozen=True, kw_only=True)
class RetrainingConfig(Config):
    """Sections 3.2 and 3.3: the retrainings too. `epsilons` thins the strengths to so many, the largest among them."""

    epsilons: int = 20
    percentiles: tuple[float, ...] = (10.0, 30.0, 50.0, 70.0, 90.0)
    seeds: int = 3
    retraining_epochs: int
    retraining_batch_size: int = 100
    random_ranking: bool = False
    own_mean: bool = False


_MNIST: dict[str, Any] = {
    "held_out": 5000,
    "train_examples": 55000,
    "test_examples": 10000,
    "l2_epsilons": (1.0, 2.0, 4.0),
    "linf_epsilons": (0.05, 0.1, 0.2),
    "standard_epochs": 5,
    "epochs": 5,
    "robust_epsilon": 1.0,
    "vae_gan_epochs": 30,
    "reconstruction_weight": 5e-3,
}
_FASHION = _MNIST | {"reconstruction_weight": 5e-4, "vae_gan_epochs": 60}
_CIFAR = _MNIST | {
    "held_out": 0,
    "train_examples": 50000,
    "l2_epsilons": (0.1, 0.4, 1.6),
    "linf_epsilons": (0.005, 0.01, 0.02),
    "standard_epochs": 20,
    "epochs": 20,
    "robust_epsilon": 0.4,
    "vae_gan_epochs": 150,
    "vae_gan_learning_rate": 2e-4,
    "reconstruction_weight": 1e-2,
    "discriminator_steps": 5,
    # The decoder's Jacobian has 128 columns an image: fewer images at a time.
    "chunk": 10,
}
_QUICK_28: dict[str, Any] = {
    "train_examples": 5000,
    "test_examples": 256,
    "train_losses": ("xent",),
    "linf_step_size": 0.1,
    "attack_steps": 3,
    "epochs": 2,
    "vae_gan_epochs": 10,
    "vae_gan_batch_size": 50,
    "analysis_steps": 20,
    "robust_steps": 10,
}
_QUICK_32 = _QUICK_28 | {
    "train_examples": 4000,
    "test_examples": 100,
    "linf_step_size": 0.02,
    "standard_epochs": 5,
    "vae_gan_epochs": 1,
    "discriminator_steps": 1,
}
_DIGITS: dict[str, Any] = {
    "held_out": 0,
    "train_examples": 1437,
    "test_examples": 360,
    "l2_epsilons": (0.5, 1.0, 2.0),
    "linf_epsilons": (0.1, 0.2, 0.4),
    "linf_step_size": 0.1,
    "attack_steps": 10,
    "standard_epochs": 15,
    "epochs": 15,
    "batch_size": 50,
    "vae_gan_epochs": 80,
    "vae_gan_batch_size": 50,
    "reconstruction_weight": 5e-3,
    "robust_epsilon": 0.5,
    "analysis_epsilon": 6.0,
    "analysis_steps": 20,
    "robust_steps": 20,
}
MANIFOLD = {
    "paper": {"mnist": _MNIST, "fashion_mnist": _FASHION, "cifar10": _CIFAR},
    "quick": {
        "digits": _DIGITS,
        # MNIST needs more training than Fashion-MNIST before few examples show the order, and wider steps of strength.
        "mnist": _MNIST
        | _QUICK_28
        | {
            "l2_epsilons": (0.5, 2.0, 4.0),
            "linf_epsilons": (0.1, 0.2, 0.4),
            "linf_step_size": 0.2,
            "epochs": 4,
            "vae_gan_epochs": 16,
        },
        "fashion_mnist": _FASHION | _QUICK_28,
        "cifar10": _CIFAR | _QUICK_32,
    },
}


def _strengths(smallest: float, count: int = 20) -> tuple[float, ...]:
    return tuple(round(smallest * index, 6) for index in range(1, count + 1))


def _training_only(preset: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in preset.items() if name in Config.__dataclass_fields__}


_RETRAINED_CIFAR = _training_only(_CIFAR) | {
    "l2_epsilons": _strengths(0.08),
    "linf_epsilons": _strengths(0.002),
    "retraining_epochs": 20,
    "chunk": 100,
}
# The paper has CIFAR-10 alone here; these are its scheme with the other sets' strengths.
_RETRAINED_MNIST = _training_only(_MNIST) | {
    "l2_epsilons": _strengths(0.2),
    "linf_epsilons": _strengths(0.01),
    "retraining_epochs": 5,
}
_RETRAINED_28 = _training_only(_QUICK_28) | {"epsilons": 3, "seeds": 1, "retraining_epochs": 2}
RETRAINING = {
    "paper": {"mnist": _RETRAINED_MNIST, "fashion_mnist": _RETRAINED_MNIST, "cifar10": _RETRAINED_CIFAR},
    "quick": {
        "digits": _training_only(_DIGITS)
        | {
            "train_losses": ("xent",),
            "l2_epsilons": _strengths(0.1),
            "linf_epsilons": _strengths(0.02),
            "epsilons": 5,
            "retraining_epochs": 15,
        },
        "mnist": _RETRAINED_MNIST | _RETRAINED_28,
        "fashion_mnist": _RETRAINED_MNIST | _RETRAINED_28,
        "cifar10": _RETRAINED_CIFAR | _training_only(_QUICK_32) | {"epsilons": 3, "seeds": 1, "retraining_epochs": 3},
    },
}
