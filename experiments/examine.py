r"""A network of yours, examined: how robust it is, whether its gradients keep to the manifold, what attributions say.

Takes trained networks as they are, in PyTorch, Flax, Equinox or as a function of JAX, and the test images of any data
set or of a folder of class folders. Nothing of the network is trained; the manifold is estimated from training images.

    python -m experiments.examine --network=net.py:build --weights=net.pt --dataset=./photos --image_size=32
    python -m experiments.examine --network=net.py:logits --dataset=digits --auto_attack=short   # a first look
    python -m experiments.examine --network=runs/manifold_distance-digits-quick:standard,net.py:logits
    python -m experiments.examine --network=net.py:logits --dataset=digits --retrain=15  # ROAR, too: a minute more
    python -m experiments.examine --network=net.py:logits --dry_run                      # what it would take here

`net.py:build` is a function without parameters that returns an `nn.Module`, whose state is `net.pt`; `net.py:logits` is
a function of one image `[H, W, C]` in [-1, 1], or a module. Networks of a run stand beside it for comparison.

Expected: a page that says of each network what its numbers mean and what they are compared with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import experiment, running
from experiments.harness.examination import dossier, removal, subjects
from experiments.harness.examination.subjects import Subject
from experiments.harness.measurement import alignment, estimates, evaluation, measures
from experiments.harness.measurement.alignment import AnalysisConfig
from experiments.harness.progress import counted, counted_networks, notes
from experiments.harness.settings.config import AutoAttackConfig, ConfigError, setting, subsets
from experiments.harness.training import stages
from experiments.harness.training.stages import Run
from robgrad import attacks, data, gradients, manifolds, networks, runs, stacking

# Images that fall first, which are shown.
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class ExamineConfig(AnalysisConfig, AutoAttackConfig):
    """Networks that were trained elsewhere, and what is asked of them."""

    most_pixels: ClassVar[int] = 224

    network: tuple[str, ...] = setting(
        "Networks: FILE.py:NAME (a module, a function that builds it, or a function of one image), the state of a wide "
        "ResNet or PreActResNet (FILE.pt, .pth or .safetensors; FILE.pt:FAMILY where names do not tell which form), "
        "a run's directory, or RUN:NETWORK; separated by commas.",
        (),
    )
    weights: tuple[str, ...] = setting(
        "A file of weights for each network from a Python file, - for none: a PyTorch state (.pt, .safetensors), or "
        "any file that the builder's parameter 'weights' takes.",
        (),
    )
    input_range: tuple[str, ...] = setting(
        "Lowest and highest pixel that networks from Python files take, as 0,1. Default: 0,1 for PyTorch, else -1,1.",
        (),
    )
    mean: tuple[str, ...] = setting("Mean of each channel that pixels are normalised by, after --input_range.", ("0",))
    std: tuple[str, ...] = setting("Deviation of each channel that pixels are divided by.", ("1",))
    norms: tuple[str, ...] = setting(
        "Norms in which the networks are attacked.", ("linf", "l2"), choices=lambda: tuple(attacks.NORMS)
    )
    evaluated: Mapping[str, tuple[float, ...]] = setting(
        "Radii of AutoAttack in the {} norm; pixels run from -1 to 1, so that 8/255 of [0, 1] is 0.0627.",
        by_norm="{}_evaluated",
    )
    attributions: tuple[str, ...] = setting(
        "Attributions and controls that are measured.",
        ("gradient", "gradient_times_input", "integrated_gradients", "smoothgrad", "noise_blurred", "edges"),
        choices=lambda: tuple(gradients.ATTRIBUTIONS),
    )
    measured_examples: int = setting("Test images of the measures of attributions, the first ones.", 50)
    sensitivity_samples: int = setting("Moved images of the sensitivity.", 3)
    retrain: int = setting("Epochs of ROAR's retrainings; 0 leaves ROAR out.", 0, zero=True)
    retrained: str = setting(
        "Network that ROAR retrains, anew for each share of pixels.", "paper", choices=lambda: tuple(networks.NETWORKS)
    )
    retraining_seeds: int = setting("Retrainings of each attribution and share of pixels.", 3)
    percentiles: tuple[float, ...] = setting(
        "Shares of pixels that ROAR removes, in percent.", (30.0, 60.0), most=100.0
    )
    # Of the networks' files, so that a changed network is another run.
    checksums: tuple[str, ...] = ()

    def __post_init__(self):
        """Refuses what cannot be examined."""
        if not self.network:
            raise ConfigError("--network: expected FILE.py:NAME, a run's directory, or RUN:NETWORK, got none")
        pixels_of(self)
        object.__setattr__(self, "checksums", subjects.checksums(self.network, self.weights))


def pixels_of(config: ExamineConfig) -> subjects.Pixels:
    """What networks of files take, in numbers."""

    def numbers(name: str, most: int | None = None) -> tuple[float, ...]:
        given = getattr(config, name)
        try:
            values = tuple(float(one) for one in given)
        except ValueError:
            values = (np.nan,)
        if not np.isfinite(values).all() or (most is not None and len(values) not in (0, most)):
            raise ConfigError(f"--{name}={','.join(given)}: expected finite numbers separated by commas")
        return values

    low, high = numbers("input_range", 2) or (None, None)
    mean, std = numbers("mean"), numbers("std")
    if low is not None and high is not None and low >= high:
        raise ConfigError(f"--input_range={low:g},{high:g}: expected the lower number first")
    if min(std) <= 0:
        raise ConfigError(f"--std={','.join(config.std)}: expected numbers above 0")
    return subjects.Pixels(low, high, mean, std)


def subjects_of(run: Run) -> list[Subject]:
    """The networks of a run's configuration."""
    config = run.config
    found = subjects.loaded(
        config.network, config.weights, pixels_of(config), run.image_shape, len(run.dataset.classes)
    )
    image = jax.ShapeDtypeStruct(run.image_shape, jnp.float32)
    for one, name in ((one, name) for one in found for name in config.attributions):
        attribution = gradients.ATTRIBUTIONS[name]
        try:
            jax.eval_shape(lambda x, one=one, of=attribution: of(jax.random.key(0), one.logits_fn, x), image)
        except ValueError as error:
            raise ConfigError(f"--attributions={name}: {one.name}: {error}") from error
    return found


def measure(run: Run) -> experiment.Arrays:
    """Of each network AutoAttack along radii, the analysis against manifolds, and the measures of attributions."""
    config = run.config
    every = subjects_of(run)
    train, test = subsets(config, run.dataset)
    found: experiment.Arrays = {"names": np.array([one.name for one in every]), "labels": np.asarray(test.labels)}
    found["classes"] = np.array(run.dataset.classes)
    found["predicted"] = np.stack([predicted(run, one, test.images) for one in every])
    for norm in config.norms:
        what = f"AutoAttack ({config.auto_attack}) in {norm}, {counted_networks(len(every))}"
        parts = [attacked(run, one, test, norm) for _, one in counted(every, what)]
        found |= {f"notes/{norm}/{one.name}": part.pop("notes") for one, part in zip(every, parts, strict=True)}
        found |= {f"{norm}/{name}": np.stack([part[name] for part in parts]) for name in parts[0]}
    keys = jax.random.split(stages.key_of(config.seed, "examine"), 3)
    arrays, shown = estimates.fitted(run, train, test, keys[0])
    found |= shown
    analyses = []
    for one in every:
        # Each has an architecture of its own, and keeps its blocks in a place of its own.
        own = run._replace(workdir=run.workdir / "analysis" / one.name)
        alone = runs.Classifiers(one.network, stacking.stack([one.variables]), (one.name,))
        analyses.append(alignment.measured(own, alone, arrays, train, test, keys[1]))
    found |= _beside(analyses) | scores_of(run, every, test, keys[2])
    return found | (removal.measured(run, every, train, test) if config.retrain else {})


def predicted(run: Run, subject: Subject, images: np.ndarray) -> np.ndarray:
    """The class of each image, `[image]`; -1 where the logits are not finite."""
    of_batch = jax.jit(jax.vmap(lambda image: networks.predicted(subject.logits_fn(data.scale(image)))))
    chunk = run.config.chunk
    parts = [of_batch(jnp.asarray(images[first : first + chunk])) for first in range(0, len(images), chunk)]
    return np.concatenate([np.asarray(part) for part in parts])


def attacked(run: Run, subject: Subject, test: data.Split, norm: str) -> experiment.Arrays:
    """AutoAttack on the first images along radii; the adversarial images are a file of the run, for other tools."""
    config, some = run.config, evaluation.attacked_of(run.config, test)
    if run.meter:
        apply = lambda variables, image: networks.logits_fn(subject.network, variables)(image)  # noqa: E731
        right = float(np.mean(predicted(run, subject, some.images) == some.labels))
        evaluation.metered(run, run.meter, test, norm, 1, apply, subject.variables, right)
        return {"notes": np.array([])}
    radii, images = config.evaluated[norm], np.asarray(data.scale(jnp.asarray(some.images)))
    found = attacks.robust_accuracy(
        subject.logits_fn,
        images,
        some.labels,
        epsilon=radii,
        norm=norm,
        version=config.auto_attack,
        seed=config.seed,
        batch=min(100, 10 * config.chunk),
        progress=notes(f"{subject.name}, {norm}"),
        state=run.workdir / "analysis" / f"auto_attack-{norm}-{subject.name}.npz",
    )
    robust, last = np.stack([one.robust for one in found]), found[-1]
    falls = np.where(robust.all(0), np.nan, np.array(radii)[np.argmin(robust, axis=0)])
    wrong = np.asarray(last.broken_by) == attacks.WRONG
    falls = np.where(wrong, 0.0, falls)
    adversarial = np.asarray(last.adversarial)
    kept = {"images": images, "labels": np.asarray(some.labels)}
    kept |= {"adversarial": adversarial, "radius": falls, "broken_by": last.broken_by, "pixel_range": np.array([-1, 1])}
    runs.write_arrays(run.workdir / "adversarial" / f"{subject.name}-{norm}.npz", kept)
    first = np.argsort(np.where(wrong | np.isnan(falls), np.inf, falls), kind="stable")[:SHOWN]
    return {
        "robust": robust,
        "broken_by": np.stack([one.broken_by for one in found]),
        "falls": falls,
        "fooled": predicted(run, subject, adversarial),
        "first": first,
        "shown": adversarial[first].astype(np.float16),
        "shown_clean": images[first].astype(np.float16),
        "notes": np.array(sorted({note for one in found for note in one.notes}), str),
    }


def _beside(analyses: Sequence[experiment.Arrays]) -> experiment.Arrays:
    """Analyses of several networks as one: what is of networks joined, what is of images once."""
    first, *others = analyses
    stacked = [name for name, values in first.items() if not _of_images(name)]
    return first | {name: np.concatenate([one[name] for one in (first, *others)]) for name in stacked}


def _of_images(name: str) -> bool:
    """Whether a measurement is of images alone, as a manifold's distance is."""
    parts = name.split("/")
    return parts[0] in manifolds.KINDS


def score_of(run: Run, subject: Subject) -> Callable[[Any, jax.Array, data.Split], experiment.Arrays]:
    """The measures of attributions of one network, compiled; see `measures.of_images`."""
    config = run.config
    rankings = {name: gradients.ATTRIBUTIONS[name] for name in config.attributions}
    signed = {name: gradients.SIGNED[name] for name in config.attributions}
    fresh = subjects.randomised(stages.key_of(config.seed, "randomised"), subject.variables)
    # Few images at a time: an attribution has tens of gradients of each, some paths ten times those of others.
    chunk = max(1, config.chunk // 5)
    return measures.of_images(subject.network, fresh, rankings, signed, config.sensitivity_samples, chunk)


def scores_of(run: Run, every: Sequence[Subject], test: data.Split, key: jax.Array) -> experiment.Arrays:
    """The measures of attributions of each network."""
    config = run.config

    def of_one(subject: Subject, keys: jax.Array, some: data.Split) -> experiment.Arrays:
        said = score_of(run, subject)(subject.variables, keys, some)
        # Networks that show no parameters cannot be randomised.
        return {"randomisation": np.full_like(said["road"], np.nan), **said}

    parts = measures.of_networks(run, [one.name for one in every], every.__getitem__, test, key, of_one)
    found = measures.joined(parts, list(config.attributions), test.images)
    # The manifold's pictures show more of the same images.
    del found["shown/test"]
    return found


EXPERIMENT = experiment.Experiment(
    name="examine",
    title="Your network, examined",
    question="How robust is it, how much of its gradient lies along the image manifold, and how faithful are its "
    "attributions?",
    config=ExamineConfig,
    measure=measure,
    tabulate=dossier.tabulate,
    claim=dossier.claim,
    draw=dossier.draw,
    columns={
        "network": "network",
        "test_accuracy": "test accuracy",
        "norm": "norm",
        "epsilon": "radius",
        "robust_accuracy": "robust accuracy",
        "tangent_fraction": "gradient along the manifold",
        "manifold": "by the manifold",
        "fraction_same_class": "along that of another image of its class",
        "tangent_fraction_covariance": "of a direction with the data's covariance",
        "attribution": "attribution",
        "road": "ROAD",
    },
    others={
        "words": ("What the numbers mean", ("network", "in_words")),
        "robust": (
            "Accuracy along radii",
            ("network", "norm", "epsilon", "clean_accuracy", "robust_accuracy"),
        ),
        "aligned": (
            "The loss gradient, and attacked images, against each manifold",
            (
                *("network", "manifold", "analysis_loss", "tangent_fraction", "fraction_same_class"),
                *("fraction_elsewhere", "tangent_fraction_covariance", "tangent_fraction_chance", "attack_success"),
                *("median_distance", "clean_median_distance"),
            ),
        ),
        "attributed": (
            "Attributions and controls, by measures without retraining, and by ROAR",
            (
                *("network", "attribution", "road", "roar", "deletion", "insertion"),
                *("infidelity", "sensitivity", "randomisation", "smoothness"),
            ),
        ),
        "by_class": (
            "Each class, at the first radius of the first norm",
            ("network", "class", "images", "clean_accuracy", "robust_accuracy", "taken_for"),
        ),
        "fallen": (
            "Images that fall first; adversarial images are in the run's folder `adversarial`",
            ("network", "norm", "image", "class", "taken_for", "epsilon", "attack"),
        ),
        "manifolds": estimates.MANIFOLDS,
        "notes": evaluation.NOTES,
    },
    captions={
        "robust_accuracy.svg": "Accuracy against radius; bars are 95% intervals over images.",
        "tangent_fraction.svg": "Share of the loss gradient's squared length along each manifold; bars are the image's "
        "own tangent space, marks what it should lie above.",
        "loss_gradients.svg": "Test images, and gradients of the negative loss at the predicted label, from blue to "
        "red.",
        "fallen_*.svg": "Images that fall first in {}, before and after the attack.",
        "attacked.svg": "Test images after the analysis attack, whose radius is large: robust networks' look like "
        "other classes.",
        "attributions.svg": "The first test image, and what each attribution says of it.",
        "roar.svg": "Accuracy of networks retrained without the pixels that an attribution ranks highest: the farther "
        "below that without random pixels, the more faithful; bars are deviations over retrainings.",
    },
    takes="a minute on digits, two to five for a small ResNet on 32x32",
    picture="robust_accuracy.svg",
    alone=True,
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
