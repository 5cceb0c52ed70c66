"""The sizes and constants of a run: one preset a data set, each number open to its own flag.

`paper` is the paper's protocol for its three data sets, in its pixel range [-1, 1]; where the published
code had a quirk (no shuffling, a sampled projection, a CW mask of zero) the sound choice is the default
and the quirk a flag. `quick` is the same code, smaller, for two CPU cores.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from robgrad import attacks, datasets, losses

flags.DEFINE_string("dataset", "digits", "'digits' (embedded), or the TFDS name of an image classification set.")
flags.DEFINE_string("data_dir", None, "TFDS data directory. Default: $TFDS_DATA_DIR, then ~/tensorflow_datasets.")
flags.DEFINE_enum("preset", "quick", ["quick", "paper"], "Sizes: 'quick' for two CPU cores, or the paper's.")
flags.DEFINE_integer("seed", 0, "Seed of everything random.", lower_bound=0)

FLAGS = flags.FLAGS
LOSSES = ("xent", "cw")


class Config(NamedTuple):
    """Everything a run's numbers depend on, as recorded in its `config.json`; radii and steps in pixel units."""

    dataset: str
    preset: str
    seed: int
    held_out: int
    train_examples: int
    test_examples: int
    norms: tuple[str, ...]
    train_losses: tuple[str, ...]
    l2_epsilons: tuple[float, ...]
    linf_epsilons: tuple[float, ...]
    l2_step_size: float
    linf_step_size: float
    attack_steps: int
    standard_epochs: int
    epochs: int
    batch_size: int
    vae_gan_epochs: int
    vae_gan_batch_size: int
    vae_gan_learning_rate: float
    reconstruction_weight: float
    robust_epsilon: float
    analysis_epsilon: float
    learning_rate: float = 1e-3
    discriminator_steps: int = 1
    robust_step_size: float = 2.0
    robust_steps: int = 40
    analysis_losses: tuple[str, ...] = LOSSES
    analysis_step_size: float = 2.0
    analysis_steps: int = 40
    shuffle: bool = True
    zero_mask: bool = False
    sampled_projection: bool = False
    chunk: int = 100


_MNIST: dict[str, Any] = {
    "held_out": 5000,
    "train_examples": 55000,
    "test_examples": 10000,
    "norms": ("l2", "linf"),
    "train_losses": LOSSES,
    "l2_epsilons": (1.0, 2.0, 4.0),
    "linf_epsilons": (0.05, 0.1, 0.2),
    "l2_step_size": 2.0,
    "linf_step_size": 0.02,
    "attack_steps": 40,
    "standard_epochs": 5,
    "epochs": 5,
    "batch_size": 100,
    "vae_gan_epochs": 30,
    "vae_gan_batch_size": 100,
    "vae_gan_learning_rate": 5e-4,
    "reconstruction_weight": 5e-3,
    "robust_epsilon": 1.0,
    "analysis_epsilon": 12.0,
}
_FASHION = _MNIST | {"reconstruction_weight": 5e-4, "vae_gan_epochs": 60}
_CIFAR = _MNIST | {
    "held_out": 0,
    "train_examples": 50000,
    "l2_epsilons": (0.1, 0.4, 1.6),
    "linf_epsilons": (0.005, 0.01, 0.02),
    "standard_epochs": 20,
    "epochs": 20,
    "vae_gan_epochs": 150,
    "vae_gan_learning_rate": 2e-4,
    "reconstruction_weight": 1e-2,
    "discriminator_steps": 5,
    "robust_epsilon": 0.4,
    # The decoder's Jacobian has 128 columns an image: fewer images at a time.
    "chunk": 10,
}
PAPER = {"mnist": _MNIST, "fashion_mnist": _FASHION, "cifar10": _CIFAR}

_QUICK_28: dict[str, Any] = {
    "train_examples": 5000,
    "test_examples": 256,
    "train_losses": ("xent",),
    "linf_step_size": 0.1,
    "attack_steps": 3,
    "standard_epochs": 5,
    "epochs": 2,
    "vae_gan_epochs": 10,
    "vae_gan_batch_size": 50,
    "analysis_steps": 20,
    "robust_steps": 10,
}
_QUICK_32 = _QUICK_28 | {"train_examples": 4000, "test_examples": 100, "linf_step_size": 0.02, "vae_gan_epochs": 1}
QUICK = {
    "digits": _MNIST
    | {
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
        "robust_epsilon": 0.5,
        "analysis_epsilon": 6.0,
        "analysis_steps": 20,
        "robust_steps": 20,
    },
    "mnist": _MNIST | _QUICK_28,
    "fashion_mnist": _FASHION | _QUICK_28,
    "cifar10": _CIFAR | _QUICK_32 | {"discriminator_steps": 1},
}

_HELP = {
    "held_out": "Training images left out at the start of the split.",
    "train_examples": "Training images used, after those held out.",
    "test_examples": "Test images analysed.",
    "norms": "Norms of adversarial training, of l2 and linf.",
    "train_losses": "Losses of the training attacks, of xent and cw.",
    "l2_epsilons": "Radii of l2 adversarial training, pixel range 2.",
    "linf_epsilons": "Radii of l-inf adversarial training, pixel range 2.",
    "l2_step_size": "Step of the l2 training attack.",
    "linf_step_size": "Step of the l-inf training attack.",
    "attack_steps": "Steps of the training attack.",
    "standard_epochs": "Epochs of the standard classifier.",
    "epochs": "Epochs of each robust classifier.",
    "batch_size": "Batch of each classifier.",
    "vae_gan_epochs": "Epochs of the VAE-GAN.",
    "vae_gan_batch_size": "Batch of the VAE-GAN.",
    "vae_gan_learning_rate": "Learning rate of the three Adams of the VAE-GAN.",
    "reconstruction_weight": "Weight lambda of the reconstruction in the decoder's loss.",
    "robust_epsilon": "Radius of the l2 xent attack behind robust_accuracy.",
    "analysis_epsilon": "Radius of the l2 attack whose distance to the manifold is measured.",
    "learning_rate": "Learning rate of the classifiers' Adam.",
    "discriminator_steps": "Discriminator steps a step of the VAE-GAN.",
    "robust_step_size": "Step of the attack behind robust_accuracy.",
    "robust_steps": "Steps of the attack behind robust_accuracy.",
    "analysis_losses": "Losses of the analysis attacks, of xent and cw.",
    "analysis_step_size": "Step of the analysis attack.",
    "analysis_steps": "Steps of the analysis attack.",
    "shuffle": "Shuffle each epoch; --noshuffle as the paper's code.",
    "zero_mask": "CW margins that set the true logit to 0 instead of leaving it out, as the paper's code.",
    "sampled_projection": "Sample the code when projecting instead of taking its mean, as the paper's code.",
    "chunk": "Images analysed at a time.",
}
_CHOICES = {"norms": tuple(attacks.NORMS), "train_losses": LOSSES, "analysis_losses": LOSSES}
_MAY_BE_ZERO = ("held_out", "l2_epsilons", "linf_epsilons", "robust_epsilon", "analysis_epsilon")


def _define(name: str, kind: type) -> None:
    text = f"{_HELP[name]} Default: the preset's."
    if name in _CHOICES:
        flags.DEFINE_list(name, None, text)
        choices = _CHOICES[name]
        flags.register_validator(
            name,
            lambda values: (
                values is None
                or (bool(values) and len(set(values)) == len(values) <= len(choices) and {*values} <= {*choices})
            ),
            f"expected some of {', '.join(choices)}, each once, separated by commas",
        )
    elif name.endswith("epsilons"):
        flags.DEFINE_list(name, None, text)
        flags.register_validator(name, _are_radii, "expected different finite numbers >= 0, separated by commas")
    elif kind is bool:
        flags.DEFINE_bool(name, None, text)
    elif kind is int:
        flags.DEFINE_integer(name, None, text, lower_bound=0 if name in _MAY_BE_ZERO else 1)
    else:
        flags.DEFINE_float(name, None, text)
        zero = name in _MAY_BE_ZERO
        flags.register_validator(
            name,
            lambda value: value is None or (np.isfinite(value) and (value > 0 or (zero and value == 0))),
            f"expected a finite number {'>= 0' if zero else '> 0'}",
        )


def _are_radii(values: Sequence[str] | None) -> bool:
    if values is None:
        return True
    try:
        radii = [float(value) for value in values]
    except ValueError:
        return False
    return len(set(radii)) == len(radii) > 0 and all(np.isfinite(radius) and radius >= 0 for radius in radii)


for _name, _kind in Config.__annotations__.items():
    if _name in _HELP:
        _define(_name, _kind)


def from_flags(dataset: datasets.Dataset) -> Config:
    """The preset for a loaded data set, with what the flags override.

    Raises:
      flags.IllegalFlagValueError: if there is no such preset, or a value does not fit the data set.
    """
    config = Config(dataset=dataset.name, preset=FLAGS.preset, seed=FLAGS.seed, **_preset(dataset))
    given: dict[str, Any] = {name: FLAGS[name].value for name in _HELP if FLAGS[name].value is not None}
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(float(item) if name.endswith("epsilons") else item for item in value)
    config = config._replace(**given)
    available = len(dataset.train.labels) - config.held_out
    _check("train_examples", config.train_examples, available, f"{dataset.name} has {available} left to train on")
    _check(
        "test_examples",
        config.test_examples,
        len(dataset.test.labels),
        f"{dataset.name} has {len(dataset.test.labels)}",
    )
    for name in ("batch_size", "vae_gan_batch_size"):
        _check(name, getattr(config, name), config.train_examples, f"--train_examples is {config.train_examples}")
    return config


def _preset(dataset: datasets.Dataset) -> dict[str, Any]:
    """The named preset; for another data set of a size that the paper has, the quick one of that size."""
    table = PAPER if FLAGS.preset == "paper" else QUICK
    if dataset.name in table:
        return table[dataset.name]
    if FLAGS.preset == "paper":
        raise flags.IllegalFlagValueError(
            f"--preset=paper: expected --dataset to be one of {', '.join(PAPER)}, got {dataset.name}; "
            "use --preset=quick"
        )
    match dataset.train.images.shape[1:]:
        case (28, 28, 1):
            preset = QUICK["fashion_mnist"] | {"held_out": 0}
        case (32, 32, _):
            preset = QUICK["cifar10"]
        case shape:
            raise flags.IllegalFlagValueError(
                f"--dataset={dataset.name}: expected images of 28x28x1 or 32x32xC pixels, got "
                f"{'x'.join(map(str, shape))}; use robgrad as a library with a vae_gan.VaeGan of that size"
            )
    return preset | {
        "train_examples": min(preset["train_examples"], len(dataset.train.labels)),
        "test_examples": min(preset["test_examples"], len(dataset.test.labels)),
    }


def _check(name: str, value: int, most: int, why: str) -> None:
    if value > most:
        raise flags.IllegalFlagValueError(f"--{name}={value}: expected at most {most} ({why})")


def workdir(experiment: str) -> Path:
    """The directory of the run: the flag's, or one named after what is run."""
    return Path(FLAGS.workdir or f"runs/{experiment}-{FLAGS.dataset}-{FLAGS.preset}")


def subsets(config: Config, dataset: datasets.Dataset) -> tuple[datasets.Split, datasets.Split]:
    """The training and test images that a run uses."""
    rows = slice(config.held_out, config.held_out + config.train_examples)
    train = datasets.Split(*(leaf[rows] for leaf in dataset.train))
    return train, datasets.Split(*(leaf[: config.test_examples] for leaf in dataset.test))


def losses_of(config: Config, bound: float) -> dict[str, losses.Loss]:
    """Losses by name; the margin is bounded in training, unbounded in analysis to reach the end of the ball."""
    return {"xent": losses.cross_entropy, "cw": partial(losses.cw_margin, bound=bound, zero_mask=config.zero_mask)}


def blocks(examples: int, most: int = 1000) -> Iterator[np.ndarray]:
    """Index blocks of one size that cover `0..examples - 1`, the last filled up with the last index."""
    count = -(-examples // most)
    size = -(-examples // count)
    for block in range(count):
        yield np.minimum(np.arange(block * size, (block + 1) * size), examples - 1)
