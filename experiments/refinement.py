r"""The neighbours, 2: refinement guided by explanations, on images with a spurious mark.

LIME-guided refinement (Nayyem, Rakin and Wang, 2024; Wang et al., 2026) flags the regions that LIME finds irrelevant or
misleading, hides them in a share of the images, penalises sensitivity to them, and trains adversarially, in rounds.
Training images carry a mark whose place gives the class away: what is spurious is known, can be taken away and moved.
LIME as the guide stands beside the gradient of a robust network, the true mask where there is one, and no guide at all:
adversarial training for as long.

    python -m experiments.refinement                            # rendered shapes, four minutes on 2 cores
    python -m experiments.refinement --dataset=fashion_mnist --guides=lime,robust-gradient

Expected, from the abstracts: robust accuracy and accuracy off the distribution rise; clean accuracy pays little.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import experiment, running
from experiments.harness.measurement import evaluation
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, interval_of
from experiments.harness.settings.config import AutoAttackConfig, ConfigError, FittedConfig, setting, subsets
from experiments.harness.training import guidance, stages
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims
from robgrad import data
from robgrad.data import corruptions, marks

SECTION = "refinement"
# Test sets by name: the mark where training had it, gone, that of another class; corrupted without it.
SETS = ("marked", "removed", "moved", "corrupted")
SEVERITY = 3
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class RefinementConfig(FittedConfig, AutoAttackConfig):
    """Guides, rounds, and what a round does."""

    guides: tuple[str, ...] = setting(
        "What says which regions matter; true-mask where the data set knows it.",
        guidance.GUIDES,
        choices=lambda: guidance.GUIDES,
    )
    rounds: int = setting("Rounds of explaining and training on.", 2)
    flagged_share: float = setting("Share of an image that is flagged, the least relevant.", 0.5, most=1.0)
    penalty: float = setting("Weight of the squared gradient on what is flagged.", 10.0, zero=True)
    lime_samples: int = setting("Evaluations of the network for each explanation of LIME.", 100)
    mark_agreement: float = setting(
        "Share of training images whose mark tells their class for sure; others' marks are drawn.", 0.9, most=1.0
    )
    train_radius: float = setting("Radius of training and of AutoAttack, in l-inf.")
    train_step_size: float = setting("Step of PGD in training.")


def guides_of(config: RefinementConfig, dataset: data.Dataset) -> tuple[str, ...]:
    """The guides of the configuration, the true mask only where the data set knows it.

    Raises:
      ConfigError: if none is left.
    """
    known = dataset.truth is not None and dataset.truth.mask is not None
    guides = tuple(guide for guide in config.guides if known or guide != guidance.MASK)
    if not guides:
        raise ConfigError(
            f"--guides={guidance.MASK}: expected a data set whose masks are known (shapes), got {dataset.name}"
        )
    return guides


def with_recorded(config: RefinementConfig, arrays: experiment.Arrays) -> RefinementConfig:
    """The configuration with the guides that there were."""
    return replace(config, guides=tuple(arrays["guides"].tolist()))


def sets_of(config: RefinementConfig, dataset: data.Dataset) -> tuple[data.Split, np.ndarray, dict[str, data.Split]]:
    """The marked training images, whose marks they carry, and the test sets by name.

    The corrupted one holds the test images under every corruption in turn.
    """
    train, test = subsets(config, dataset)
    classes = len(dataset.classes)
    keys = marks.agreeing(train.labels, classes, config.mark_agreement, config.seed)
    shown = {"marked": marks.marked(test, classes, test.labels), "removed": test}
    shown["moved"] = marks.marked(test, classes, marks.misleading(test.labels, classes, config.seed))
    spoiled = []
    images = data.scale(jnp.asarray(test.images))
    for name, corrupt in corruptions.CORRUPTIONS.items():
        draws = jax.random.split(stages.key_of(config.seed, name), len(images))
        spoiled.append(np.asarray(jax.vmap(lambda key, image, of=corrupt: of(key, image, SEVERITY))(draws, images)))
    labels = np.tile(test.labels, len(spoiled))
    shown["corrupted"] = data.Split(np.clip(np.concatenate(spoiled), *data.PIXEL_RANGE), labels)
    return marks.marked(train, classes, keys), keys, shown


def measure(run: Run) -> experiment.Arrays:
    """Hits of every network on every test set, and under AutoAttack with the mark taken away."""
    run = run._replace(config=replace(run.config, guides=guides_of(run.config, run.dataset)))
    config = run.config
    train, keys, shown = sets_of(config, run.dataset)
    trained, flags = guidance.trained_of(run, train, keys)
    arrays = {f"hits/{name}": evaluation.hits(run, trained, of, jax.random.key(0)) for name, of in shown.items()}
    found = evaluation.auto_attacked(run, trained, shown["removed"], "linf", (config.train_radius,))
    arrays |= {"hits/robust": found.pop("robust")[:, 0]} | {name: of for name, of in found.items() if "notes" in name}
    first = {name: of.images[:SHOWN] for name, of in shown.items()}
    images = {f"shown/{name}": np.asarray(data.scale(jnp.asarray(of)), np.float16) for name, of in first.items()}
    return arrays | flags | images | {"guides": np.array(config.guides)}


def rows_of(config: RefinementConfig, arrays: experiment.Arrays, name: str) -> dict[str, np.ndarray]:
    """Hits on one test set by training, `[seed, image]`; of the corrupted one the share of an image's corruptions."""
    hits, seeds = arrays[f"hits/{name}"] * 1.0, config.network_seeds
    if name == "corrupted":
        hits = hits.reshape(len(hits), len(corruptions.CORRUPTIONS), -1).mean(1)
    return {one: hits[index * seeds : (index + 1) * seeds] for index, one in enumerate(guidance.trainings_of(config))}


def tabulate(config: RefinementConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each training: accuracies on each test set, with intervals."""
    config, rows = with_recorded(config, arrays), []
    for name in guidance.trainings_of(config):
        row: Row = {"training": name, "network_seeds": config.network_seeds}
        for kind in (*SETS, "robust"):
            row |= claims.bounded(f"{kind}_accuracy", rows_of(config, arrays, kind)[name])
        row["mark_flagged"] = arrays[f"flagged/{name}"].mean() if f"flagged/{name}" in arrays else np.nan
        rows.append(row)
    return {"rows": rows, "notes": evaluation.notes_of(guidance.names_of(config), "linf", arrays)}


RISES = {
    "robust": "robust accuracy rises",
    "corrupted": f"accuracy under corruptions of severity {SEVERITY} rises",
    "removed": "accuracy without the mark rises",
    "moved": "accuracy with the mark moved rises",
}
# What the abstracts speak of, for LIME against standard training.
PUBLISHED = ("robust", "corrupted")


def claim(config: RefinementConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """What refinement by LIME gains over standard training, as published; what each guide gains over none, as fair."""
    del tables
    config = with_recorded(config, arrays)

    def compared(text: str, kind: str, guide: str, base: str, published: str, margin: float = 0.0) -> Row:
        values = rows_of(config, arrays, kind)
        gains = values[guide] - values[base]
        each = f", {len(corruptions.CORRUPTIONS)} corruptions each" if kind == "corrupted" else ""
        over = claims.Over(config.network_seeds, f"{gains.shape[1]} images{each}")
        text += "" if published != "-" else " (our test)"
        return claims.gain(claims.Claim(SECTION, text, guide, published, over), gains, margin)

    for guide in config.guides:
        for base in (guidance.STANDARD, guidance.ADVERSARIAL):
            for kind, text in RISES.items():
                theirs = guide == "lime" and base == guidance.STANDARD and kind in PUBLISHED
                yield compared(
                    f"refined, {text}, against {base} training", kind, guide, base, "rises" if theirs else "-"
                )
        text = "refined, clean accuracy without the mark pays less than 5 points, against standard training"
        yield compared(text, "removed", guide, guidance.STANDARD, "modest" if guide == "lime" else "-", margin=0.05)


def draw(workdir: Path, config: RefinementConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Accuracies with intervals, by test set; some images."""
    config = with_recorded(config, arrays)
    colours = figures.distinct(guidance.trainings_of(config))
    groups: dict[str, dict[str, list[figures.Interval]]] = {}
    for kind in (*SETS, "robust"):
        for row in tables["rows"]:
            groups.setdefault(HEADINGS[kind], {})[row["training"]] = [interval_of(row, f"{kind}_accuracy")]
    figures.intervals_figure(workdir / "refinement.svg", groups, {}, "accuracy", colours)
    figures.image_grid(workdir / "marks.svg", {HEADINGS[name]: arrays[f"shown/{name}"] for name in SETS})


HEADINGS = {
    "marked": "mark as in training",
    "removed": "mark removed",
    "moved": "mark moved",
    "corrupted": "corrupted",
    "robust": "under AutoAttack",
}


EXPERIMENT = experiment.Experiment(
    name="refinement",
    title="Refinement guided by explanations, with a spurious mark",
    question="Does training that is guided by LIME, or by a better guide, make networks more robust, and right where a "
    "mark that gave the class away is gone or misleads? The fair comparison is adversarial training for as long.",
    config=RefinementConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "training": "training",
        **{f"{kind}_accuracy": HEADINGS[kind] for kind in (*SETS, "robust")},
        "mark_flagged": "share of the marks flagged at first",
    },
    others={"notes": evaluation.NOTES},
    captions={
        "refinement.svg": "Accuracy with the mark as in training, without it, with another class's, under corruptions, "
        "and under AutoAttack; intervals are over seeds and images.",
        "marks.svg": "Test images with the mark as in training, without it, with another class's; and corrupted.",
    },
    paper_datasets=("cifar10",),
    takes="four minutes",
    picture="refinement.svg",
    dataset="shapes-16",
    neighbour=True,
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
