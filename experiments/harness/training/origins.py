"""What networks and manifolds of a run depend on, and which of another run are the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.settings.config import TrainingConfig
from experiments.harness.training.specs import Spec
from robgrad import manifolds, runs, training


class Source(NamedTuple):
    """Another run, whose networks are used; a strict one must have trained its networks as this run would."""

    run: Path
    strict: bool = True


_DATA = ("dataset", "seed", "held_out", "train_examples", "shuffle", "matmul_precision")


_FITTED = (*_DATA, "network", "batch_size", "learning_rate")


# What older runs do not say of themselves: they had the default.
_SINCE = {
    name: training.Recipe.__dataclass_fields__[name].default
    for name in ("optimizer", "momentum", "schedule", "clip", "smoothing", "mixup", "average", "average_from", "ramp")
} | {"augmentation": "", "weight_decay": 0.0, "keep": "last"}


def settings_of(config: Any, *more: str) -> dict[str, Any]:
    """What every classifier of a run depends on, and more of its configuration by name."""
    plain = {name: getattr(config, name) for name in (*_FITTED, *_SINCE, *more)}
    return plain | {"augmentation": ",".join(config.augmentation)}


def training_settings(config: TrainingConfig, spec: Spec) -> dict[str, Any]:
    """What a network depends on beside its name: of the configuration, what its training reads."""
    names = ["epochs" if spec.norm else "standard_epochs"]
    if spec.norm:
        names += ["attack_steps", "train_attack", "objective", *training.OBJECTIVES[config.objective].settings]
        names += ["zero_mask"] if spec.loss == "cw" else []
    settings = settings_of(config, *names)
    return settings | ({"step_size": config.step_sizes[spec.norm]} if spec.norm else {"ramp": 0.0})


def manifold_settings(config: Any, name: str) -> dict[str, Any]:
    """What a manifold depends on: of the configuration, the data and what its kind reads."""
    kind = manifolds.KINDS[name]
    # What is known of a set is known of its test images, too.
    more = ("test_examples",) if kind.needs_truth else ()
    return {field: getattr(config, field) for field in (*_DATA, *more, *kind.settings)}


def stage_of(stage: str, source: Source | None) -> Path | None:
    """Where another run keeps a stage; None if there is no such run, or it has none such."""
    if source is None or (not source.strict and not (source.run / "networks").is_dir()):
        return None
    return next((path for path in runs.stages(source.run) if path.name == stage), None)


def equal(about: Mapping[str, Any], settings: Mapping[str, Any], path: Path, strict: bool) -> bool:
    """Whether what another run has trained depends on the same settings; older runs had the defaults of newer ones.

    Raises:
      RunError: if it does not, and it must.
    """
    there = _SINCE | about["training"]
    different = [name for name, value in settings.items() if there.get(name) != value]
    if different and strict:
        name = different[0]
        raise runs.RunError(
            f"--networks_from: {path} was trained with {name} = {there.get(name)}, this run wants "
            f"{settings[name]}; give the same settings, or leave --networks_from out"
        )
    return not different


def taken(config, first: Spec, source: Source | None) -> runs.Classifiers | None:
    """The stack of another run that was trained as this network is to be."""
    path = stage_of(first.stack, source)
    if source is None or path is None:
        return None
    other = runs.load_classifiers(path)
    return other if equal(other.about, training_settings(config, first), path, source.strict) else None
