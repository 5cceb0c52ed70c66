"""Configurations: what the numbers of an experiment depend on, each with its help text and its bounds.

A configuration is a frozen dataclass whose fields are made by `setting`; flags, help and checks are read off it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from robgrad import attacks, data, faithfulness, manifolds, networks, training


class ConfigError(ValueError):
    """A setting that does not fit the data set or the preset; its message is for the user."""


def setting(
    text: str,
    default: Any = dataclasses.MISSING,
    *,
    zero: bool = False,
    most: float = np.inf,
    choices: Callable[[], Sequence[str]] | None = None,
    by_norm: str = "",
) -> Any:
    """A field of a configuration.

    Args:
      text: what it is, for `--help`.
      default: where no preset gives another.
      zero: whether a number may be 0; it is never negative.
      most: numbers must be below this.
      choices: what texts may be.
      by_norm: for a mapping by norm, the name of each norm's flag, for instance `{}_epsilons`.
    """
    metadata = {"help": text, "zero": zero, "most": most, "choices": choices, "by_norm": by_norm}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every run's numbers depend on."""

    # Whether it is about masks of what matters, which few data sets have.
    needs_masks: ClassVar[bool] = False

    preset: str
    seed: int
    matmul_precision: str


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """A part of a data set."""

    # Whether training images must be held out, to choose by.
    needs_held_out: ClassVar[bool] = False
    # The most pixels of a side that images may have.
    most_pixels: ClassVar[int] = 64

    dataset: str
    held_out: int = setting("Training images left out at the start of the split.", 0, zero=True)
    train_examples: int = setting("Training images used, after those held out.")
    test_examples: int = setting("Test images analysed.")
    shuffle: bool = setting("Shuffle each epoch; --noshuffle as the paper's code.", True)
    chunk: int = setting("Images analysed at a time.", 100)


@dataclass(frozen=True, kw_only=True)
class FittedConfig(DataConfig):
    """Classifiers fitted to a data set, in whatever way."""

    network: str = setting("Architecture of the classifiers.", "paper", choices=lambda: tuple(networks.NETWORKS))
    network_seeds: int = setting("Networks of each kind, each from a start of its own.", 1)
    attack_steps: int = setting("Steps of the training attack.", 40)
    standard_epochs: int = setting("Epochs of the standard classifier.")
    epochs: int = setting("Epochs of each robust classifier.")
    batch_size: int = setting("Batch of each classifier.", 100)
    learning_rate: float = setting("Learning rate of the classifiers' Adam.", 1e-3)
    train_attack: str = setting("Attack in training.", "pgd", choices=lambda: tuple(attacks.ATTACKS))
    optimizer: str = setting("Optimizer of the classifiers.", "adam", choices=lambda: tuple(training.OPTIMIZERS))
    momentum: float = setting(
        "Momentum of SGD; of the others the decay of their first moment.", 0.9, zero=True, most=1.0
    )
    schedule: str = setting(
        "Schedule of the learning rate over the training.", "constant", choices=lambda: tuple(training.SCHEDULES)
    )
    weight_decay: float = setting("Weight decay of the optimizer.", 0.0, zero=True)
    clip: float = setting("Greatest l2 norm of a step's gradient; 0 for any.", 0.0, zero=True)
    augmentation: tuple[str, ...] = setting(
        f"Augmentations of training images, of {', '.join(training.AUGMENTATIONS)}, pixels as in crop:2.",
        (),
    )
    smoothing: float = setting("Share of a label's probability that all classes get alike.", 0.0, zero=True, most=1.0)
    mixup: float = setting("Alpha of mixup, which blends images and labels of a batch; 0 for none.", 0.0, zero=True)
    average: float = setting(
        "Decay of the average of the weights that is kept in their place; 1 for the plain mean, 0 for none.",
        0.0,
        zero=True,
        most=1.0 + 1e-9,
    )
    average_from: float = setting("Share of the training before that average begins.", 0.0, zero=True, most=1.0)
    ramp: float = setting(
        "Share of the training over which the attack's radius grows from 0.", 0.0, zero=True, most=1.0 + 1e-9
    )
    keep: str = setting(
        "Which state is kept: the last, or the best epoch's by the accuracy of held-out images under a short attack.",
        "last",
        choices=lambda: ("last", "best"),
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(FittedConfig):
    """A standard network and robust ones by norm, loss and radius; radii and steps in units of the pixel range 2."""

    norms: tuple[str, ...] = setting(
        "Norms of adversarial training.", ("l2", "linf"), choices=lambda: tuple(attacks.NORMS)
    )
    train_losses: tuple[str, ...] = setting(
        "Losses that the training attacks ascend.", ("xent", "cw"), choices=lambda: tuple(attacks.LOSSES)
    )
    objective: str = setting("What training descends.", "adversarial", choices=lambda: tuple(training.OBJECTIVES))
    objective_weight: float = setting(
        "Weight of the objective's second term; where none is given what its authors had: TRADES' beta is 6.",
        6.0,
        zero=True,
    )
    radii: Mapping[str, tuple[float, ...]] = setting(
        "Radii (epsilons) of adversarial training in the {} norm.", zero=True, by_norm="{}_epsilons"
    )
    step_sizes: Mapping[str, float] = setting("Step of the {} training attack.", by_norm="{}_step_size")
    zero_mask: bool = setting(
        "CW margins that set the true logit to 0 instead of leaving it out, as the paper's code.", False
    )

    @property
    def trained_radii(self) -> Mapping[str, Sequence[float]]:
        """The radii by norm that the run trains for."""
        return self.radii


@dataclass(frozen=True, kw_only=True)
class AutoAttackConfig(Config):
    """AutoAttack on the networks."""

    auto_attack: str = setting(
        "Version of AutoAttack, the attack behind robust_accuracy.", "standard", choices=lambda: attacks.VERSIONS
    )
    attacked_examples: int = setting("Test images under AutoAttack, the first ones; at most all that are used.", 1000)


@dataclass(frozen=True, kw_only=True)
class AttackedConfig(TrainingConfig, AutoAttackConfig):
    """AutoAttack on the networks too."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedConfig(AttackedConfig):
    """Accuracies of the networks as a column beside what is measured."""

    robust_epsilon: float = setting("Radius, in l2, of robust_accuracy and pgd_accuracy.", zero=True)
    pgd_step_size: float = setting("Step of the paper's attack, PGD on the cross-entropy, behind pgd_accuracy.", 2.0)
    pgd_steps: int = setting("Steps of that attack.", 40)


def settings_of(kind: type[Config]) -> list[dataclasses.Field]:
    """The fields of a configuration that a user may set."""
    return [field for field in dataclasses.fields(kind) if "help" in field.metadata]


def check_fits(config: Any, dataset: data.Dataset) -> None:
    """That a configuration can be run on a data set.

    Raises:
      ConfigError: if not; it names the flag, and says what was expected.
    """
    if config.needs_held_out and not config.held_out:
        raise ConfigError("--held_out=0: expected at least one training image, by which strengths are chosen")
    if isinstance(config, FittedConfig):
        _check_recipe(config, dataset)
    losses = getattr(config, "train_losses", ())
    if len(losses) > 1 and training.OBJECTIVES[config.objective].attack_loss:
        raise ConfigError(
            f"--objective={config.objective}: its attack ascends a loss of its own, so that networks of several "
            f"--train_losses would be the same; give one of {', '.join(losses)}"
        )
    for name in ("train_losses", "analysis_losses"):
        undefined = [
            one for one in getattr(config, name, ()) if len(dataset.classes) < attacks.LEAST_CLASSES.get(one, 0)
        ]
        if undefined:
            raise ConfigError(
                f"--{name}={undefined[0]}: expected a loss that is defined for the {len(dataset.classes)} classes of "
                f"{dataset.name}; give cw, the margin that takes its place"
            )
    if config.needs_masks and not data.marks.has_masks(dataset):
        raise ConfigError(
            f"--dataset={dataset.name}: expected a data set with masks of what matters: rendered shapes, or an .npz "
            "file with an array test_masks"
        )
    pixels = int(np.prod(dataset.train.images.shape[1:]))
    for share in getattr(config, "percentiles", ()):
        try:
            faithfulness.checked_share(share / 100, int(np.prod(dataset.train.images.shape[1:3])))
        except ValueError as error:
            raise ConfigError(f"--percentiles={share:g}: {error}") from error
    _check_manifolds(config, dataset, pixels)
    available, tests = len(dataset.train.labels) - config.held_out, len(dataset.test.labels)
    _check("train_examples", config.train_examples, available, f"{dataset.name} has {available} left to train on")
    _check("test_examples", config.test_examples, tests, f"{dataset.name} has {tests}")
    for field in settings_of(type(config)):
        if field.name.endswith("batch_size"):
            why = f"--train_examples is {config.train_examples}"
            _check(field.name, getattr(config, field.name), config.train_examples, why)
        if field.metadata["by_norm"]:
            missing = [norm for norm in config.norms if norm not in getattr(config, field.name)]
            if missing:
                raise ConfigError(
                    f"--{field.metadata['by_norm'].format(missing[0])}: expected for the norm {missing[0]}"
                )


def _check_recipe(config: Any, dataset: data.Dataset) -> None:
    """That the classifiers can be trained so on these images."""
    if config.keep == "best" and not config.held_out:
        raise ConfigError("--keep=best: expected --held_out above 0, images by which the best epoch is found")
    try:
        recipe_of(config, (config.norms or (None,))[0] if hasattr(config, "norms") else "linf")
        augmentation = training.augmentation_named(config.augmentation)
        if augmentation is not None:
            image = jax.ShapeDtypeStruct(dataset.train.images.shape[1:], jnp.float32)
            jax.eval_shape(augmentation, jax.ShapeDtypeStruct((), jax.random.key(0).dtype), image)
    except ValueError as error:
        raise ConfigError(f"{dataset.name}: {error}") from error


def recipe_of(config: FittedConfig, norm: str | None, **changed: Any) -> training.Recipe:
    """How the networks of a run are trained in a norm, or without an attack; some of it changed."""
    names = {field.name for field in dataclasses.fields(training.Recipe)}
    given = {field.name: getattr(config, field.name) for field in settings_of(type(config)) if field.name in names}
    if norm is None:
        given |= {"objective": "adversarial", "ramp": 0.0}
    return training.Recipe(**{**given, "norm": norm, "attack": config.train_attack, **changed})


def steps_of(config: FittedConfig, epochs: int) -> int:
    """Steps of a training of the classifiers of so many epochs."""
    return epochs * (config.train_examples // config.batch_size)


def _check_manifolds(config: Any, dataset: data.Dataset, pixels: int) -> None:
    """That the manifolds asked for can be fitted to the images."""
    chosen = getattr(config, "manifold", ())
    if "all" in chosen:
        raise ConfigError("--manifold: expected 'all' by itself, or some manifolds")
    for name in chosen:
        kind = manifolds.KINDS[name]
        if kind.needs_truth and dataset.truth is None:
            raise ConfigError(
                f"--manifold={name}: expected a data set that was generated (shapes, generated:RUN), got {dataset.name}"
            )
        for setting_name, most, why in kind.limits(pixels, dataclasses.asdict(config)):
            _check(setting_name, getattr(config, setting_name), most, why)


def _check(name: str, value: int, most: int, why: str) -> None:
    if value > most:
        raise ConfigError(f"--{name}={value}: expected at most {most} ({why})")


def label(dataset: str) -> str:
    """A data set's name as part of a directory's."""
    if dataset.startswith("generated:"):
        return f"generated-{Path(dataset).name}"
    if data.is_folder(dataset):
        return Path(dataset).expanduser().resolve().name
    return Path(dataset).stem if data.is_file(dataset) else dataset


def subsets(config: DataConfig, dataset: data.Dataset) -> tuple[data.Split, data.Split]:
    """The training and test images that a run uses."""
    rows = slice(config.held_out, config.held_out + config.train_examples)
    train = dataset.train.take(rows)
    return train, dataset.test.take(config.test_examples)


def losses_of(config: DataConfig, bound: float) -> dict[str, attacks.Loss]:
    """Losses by name; the margin is bounded in training, unbounded in analysis to reach the end of the ball."""
    margin = partial(attacks.cw_margin, bound=bound, zero_mask=getattr(config, "zero_mask", False))
    return {**attacks.LOSSES, "cw": margin}


def blocks(examples: int, most: int = 1000) -> Iterator[np.ndarray]:
    """Index blocks of one size that cover `0..examples - 1`, the last filled up with the last index."""
    count = -(-examples // most)
    size = -(-examples // count)
    for block in range(count):
        yield np.minimum(np.arange(block * size, (block + 1) * size), examples - 1)
