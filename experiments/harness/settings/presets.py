"""Configurations made of presets: the settings of `experiments/settings.toml` by experiment, preset and data set."""

import dataclasses
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from experiments.harness.settings.config import Config, ConfigError, check_fits, settings_of
from robgrad import data, manifolds, training

Preset = Mapping[str, Any]
Presets = Mapping[str, Mapping[str, Preset]]
SETTINGS = Path(__file__).parents[2] / "settings.toml"


@cache
def tables() -> Mapping[str, Presets]:
    """The whole page of settings: by experiment, or `shared` for all of them, preset and data set, or `any`."""
    return tomllib.loads(SETTINGS.read_text())


def shared() -> Presets:
    """What all experiments share, by preset and data set."""
    return tables()["shared"]


@cache
def presets_of(experiment: str) -> Presets:
    """The settings of an experiment by preset and data set: what all share, with its own over it."""
    own = tables().get(experiment)
    if own is None:
        raise ConfigError(
            f"{SETTINGS.name}: expected tables [{experiment}.PRESET.SET], one for each preset that it has"
        )

    def of(preset: str, dataset: str) -> Preset:
        parts = (part.get(name, {}) for part in (shared()[preset], own[preset]) for name in ("any", dataset))
        return {name: _frozen(value) for part in parts for name, value in part.items()}

    return {preset: {name: of(preset, name) for name in shared()[preset] if name != "any"} for preset in own}


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _frozen(part) for name, part in value.items()}
    return tuple(value) if isinstance(value, list) else value


def made(kind: type[Config], presets: Presets, common: Mapping[str, Any], given: Mapping[str, Any], dataset=None):
    """A configuration from its preset for a data set, with what was given over it.

    Args:
      kind: the type of configuration.
      presets: by preset and data set; `""` stands for an experiment without a data set.
      common: `preset`, `seed`, `matmul_precision`.
      given: settings by name; those by norm as mappings, which replace the preset's norm by norm.
      dataset: the `data.Dataset`, where the experiment has one.

    Raises:
      ConfigError: if there is no such preset, or a value does not fit the data set.
    """
    preset = dict(_preset(kind, presets, common["preset"], dataset))
    for field in settings_of(kind):
        if field.metadata["by_norm"] and field.name in given:
            preset[field.name] = {**preset.get(field.name, {}), **given[field.name]}
    alone = {name: value for name, value in given.items() if not isinstance(value, Mapping)}
    named = {} if dataset is None else {"dataset": dataset.name}
    settings = preset | alone
    if settings.get("manifold") == ("all",):
        known = dataset is not None and dataset.truth is not None
        settings["manifold"] = tuple(name for name, one in manifolds.KINDS.items() if known or not one.needs_truth)
    fields = {field.name for field in dataclasses.fields(kind)}
    if "objective_weight" in fields and "objective_weight" not in settings:
        settings["objective_weight"] = training.OBJECTIVES[settings.get("objective", "adversarial")].weight
    unsaid = [
        field.name for field in settings_of(kind) if field.default is dataclasses.MISSING and field.name not in settings
    ]
    if unsaid:
        raise ConfigError(
            f"--preset={common['preset']}: expected {', '.join(unsaid)}, which have no default, in {SETTINGS.name} or "
            "by flag"
        )
    # Presets of training say more than every kind of configuration asks.
    config = kind(**common, **named, **{name: value for name, value in settings.items() if name in fields})
    if dataset is not None:
        check_fits(config, dataset)
    return config


def _preset(kind: type[Config], presets: Presets, name: str, dataset: data.Dataset | None) -> Preset:
    """The named preset; for another data set, the quick one of the set nearest in size, no larger than the set."""
    if name not in presets:
        raise ConfigError(f"--preset={name}: expected one of {', '.join(presets)}, which this experiment has")
    table = presets[name]
    if dataset is None:
        return table.get("", {})
    if dataset.name in table:
        return table[dataset.name]
    if name != "quick":
        raise ConfigError(
            f"--preset={name}: expected --dataset to be one of {', '.join(table) or 'none'}, got {dataset.name}; "
            "use --preset=quick"
        )
    height, width, channels = dataset.train.images.shape[1:]
    most = getattr(kind, "most_pixels", 64)
    if not 8 <= min(height, width) <= max(height, width) <= most or channels not in (1, 3):
        raise ConfigError(
            f"--dataset={dataset.name}: expected images of 8x8 to {most}x{most} pixels, grey or colour, got "
            f"{height}x{width}x{channels}; use robgrad as a library for others"
        )
    side = max(height, width)
    near = "digits" if side <= 16 else "fashion_mnist" if side <= 28 else "cifar10"
    if dataset.name.startswith("shapes"):
        near = "shapes-16" if side <= 20 else "shapes"
    preset = table[near]
    examples, tests = len(dataset.train.labels), len(dataset.test.labels)
    least = {"train_examples": examples, "test_examples": tests, "attacked_examples": tests}
    least |= {"measured_examples": tests}
    least |= {field.name: examples for field in settings_of(kind) if field.name.endswith("batch_size")}
    held = examples // 10 if getattr(kind, "needs_held_out", False) else 0
    least["train_examples"] -= held
    values = {field.name: preset.get(field.name, field.default) for field in settings_of(kind) if field.name in least}
    return {**preset, "held_out": held} | {name: min(value, least[name]) for name, value in values.items()}
