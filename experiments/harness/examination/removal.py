"""ROAR of networks that a user brings: their highest pixels removed, and networks of our own architecture retrained."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.harness.examination.subjects import Subject
from experiments.harness.progress import progress
from experiments.harness.settings.config import subsets
from experiments.harness.training import stages
from experiments.harness.training.meter import Meter
from experiments.harness.training.stages import Run
from robgrad import data, faithfulness, gradients, networks, runs


def measured(run: Run, every: Sequence[Subject], train: data.Split, test: data.Split) -> dict[str, np.ndarray]:
    """ROAR of each network's attributions: `roar/score` with its interval `[network, attribution]`, and curves."""
    config = run.config
    if run.meter:
        _metered(run, run.meter, len(every))
        return {}
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


def _metered(run: Run, meter: Meter, count: int) -> None:
    """Adds what ROAR of so many networks would take, by made-up rankings."""
    config, shape, methods = run.config, run.image_shape, tuple(run.config.attributions)
    train = subsets(config, run.dataset)[0]
    model = networks.network_named(config.retrained, shape, len(run.dataset.classes))
    names = (*methods, faithfulness.RANDOM)
    part = faithfulness.grid(names, config.percentiles, config.retraining_seeds, (faithfulness.ROAR,))
    pixels, maps = shape[0] * shape[1], len(methods) + config.retraining_seeds
    ranks = np.zeros((len(train.labels), maps, *shape[:2]), np.uint8 if pixels <= 256 else np.uint16)
    plan = stages.Plan(
        "ROAR", faithfulness.retraining_step(model, faithfulness.mean_colour(train.images)),
        faithfulness.initial_states(model, shape, part, jax.random.key(0)),
        faithfulness.numbers_of(part, methods, pixels), [str(one) for one in part],
        min(100, len(train.labels)), config.retrain, True, networks.intensity(model, shape, 0), retrains=True,
    )  # fmt: skip
    meter.trained(plan, faithfulness.Examples(train.images, train.labels, ranks), run.options)
    meter.retrained("ROAR", len(part) * (count - 1))
