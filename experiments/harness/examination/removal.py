"""ROAR of networks that a user brings: their highest pixels removed, and networks of our own architecture retrained."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.harness import costs
from experiments.harness.examination.subjects import Subject
from experiments.harness.pages.tables import Row
from experiments.harness.progress import progress
from experiments.harness.settings.config import subsets
from experiments.harness.settings.options import Options
from experiments.harness.training import stages
from experiments.harness.training.stages import Run
from robgrad import data, faithfulness, gradients, networks, runs


def measured(run: Run, every: Sequence[Subject], train: data.Split, test: data.Split) -> dict[str, np.ndarray]:
    """ROAR of each network's attributions: `roar/score` with its interval `[network, attribution]`, and curves."""
    config = run.config
    classes = len(run.dataset.classes)
    model = networks.network_named(config.retrained, run.image_shape, classes)
    parts = []
    for subject in every:
        path = run.workdir / "analysis" / f"roar-{subject.name}.npz"
        part = runs.read_arrays(path)
        if part is None:
            with progress(f"{subject.name}, ROAR") as report:
                curves = faithfulness.roar(
                    subject.logits_fn,
                    {name: gradients.ATTRIBUTIONS[name] for name in config.attributions},
                    *(train, test),
                    classes=classes,
                    model=model,
                    percentiles=config.percentiles,
                    seeds=config.retraining_seeds,
                    epochs=config.retrain,
                    batch_size=min(100, len(train.labels)),
                    key=stages.key_of(config.seed, "roar"),
                    progress=partial(_trained_only, report),
                )
            fields = ("score", "low", "high", "mean", "std", "random")
            part = {name: np.stack([getattr(one, name) for one in curves.values()]) for name in fields}
            runs.write_arrays(path, part)
        parts.append(part)
    return {f"roar/{name}": np.stack([part[name] for part in parts]) for name in parts[0]}


def _trained_only(report: Callable[[Any], None], said: Any) -> None:
    """Reports how far the retrainings are; not the line that names the network."""
    if not isinstance(said, str):
        report(said)


def row_of(config: Any, dataset: data.Dataset, options: Options, count: int) -> Row:
    """What ROAR would take of so many networks, by made-up rankings."""
    train, shape, methods = subsets(config, dataset)[0], dataset.train.images.shape[1:], tuple(config.attributions)
    model = networks.network_named(config.retrained, shape, len(dataset.classes))
    names = (*methods, faithfulness.RANDOM)
    part = faithfulness.grid(names, config.percentiles, config.retraining_seeds, (faithfulness.ROAR,))
    pixels, maps = shape[0] * shape[1], len(methods) + config.retraining_seeds
    ranks = np.zeros((len(train.labels), maps, *shape[:2]), np.uint8 if pixels <= 256 else np.uint16)
    plan = stages.Plan(
        "ROAR", faithfulness.retraining_step(model, faithfulness.mean_colour(train.images)),
        faithfulness.initial_states(model, shape, part, jax.random.key(0)),
        faithfulness.numbers_of(part, methods, pixels), [str(one) for one in part],
        min(100, len(train.labels)), config.retrain, True, networks.intensity(model, shape, 0),
    )  # fmt: skip
    examples = faithfulness.Examples(train.images, train.labels, ranks)
    row = costs.row_of(dataset.name, plan, examples, options, count)
    return row | {"retrainings": len(part) * count}
