r"""Which attributions are faithful, on which networks, and which measures can be believed.

Every attribution of every network, beside controls that know nothing of the network or of the image, by measures that
retrain (ROAR, KAR, DiffROAR) and measures that do not (ROAD, deletion, insertion, infidelity, sensitivity, parameter
randomisation); on rendered shapes the true mask is among the attributions, so that the measures are judged too.

    python -m experiments.faithfulness                      # digits, ten minutes on 2 cores
    python -m experiments.faithfulness --dataset=shapes-16
    python -m experiments.faithfulness --attributions=gradient,integrated_gradients,noise_blurred

It asks what the paper leaves open: whether other attributions on robust networks do better than Gradient * Input, and
whether l-inf training keeps its gain; and what it does not ask: whether robust gradients do better than blurred ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import experiment, running
from experiments.harness.measurement import benchmarks, evaluation, measures
from experiments.harness.measurement.benchmarks import RetrainingConfig
from experiments.harness.measurement.measures import MEASURES
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, interval_of, with_interval
from experiments.harness.settings.config import setting, subsets
from experiments.harness.training import retraining, stages
from experiments.harness.training.specs import Spec, kinds_of, specs_of
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims
from robgrad import data, faithfulness, gradients, networks, runs
from robgrad.faithfulness import KAR, RANDOM, ROAR
from robgrad.gradients import controls

# Attributions that need more than a network and an image: the training images, an untrained network, the truth.
BACKGROUND = ("expected_gradients", "gradient_untrained", "gradient_elsewhere", "true_mask")
CONTROLS = (*gradients.CONTROLS, "gradient_untrained", "gradient_elsewhere")
# Measures of hits of retrained networks.
RETRAINED = (ROAR, KAR, "diff_roar")
STANDARD = Spec().kind


@dataclass(frozen=True, kw_only=True)
class FaithfulnessConfig(RetrainingConfig):
    """Attributions with controls, retrained and measured."""

    attributions: tuple[str, ...] = setting(
        "Attributions and controls; true_mask where the data set has one.",
        (
            *("gradient", "gradient_times_input", "integrated_gradients", "smoothgrad", "deep_lift", "lrp"),
            *("gradient_blurred", "noise_blurred", "edges", "gradient_untrained", "gradient_elsewhere"),
        ),
        choices=lambda: (*gradients.ATTRIBUTIONS, *BACKGROUND),
    )
    measured_examples: int = setting("Test images of the measures without retraining, the first ones.", 200)
    sensitivity_samples: int = setting("Moved images of the sensitivity.", 5)


def methods_of(run: Run, train: data.Split, test: data.Split, signed: bool = False) -> dict[str, gradients.Attribution]:
    """The attributions of a run by name, as rankings or with their signs; the true mask last where it is known."""
    forms, pixels = (
        (gradients.SIGNED, gradients.outputs.by_channel)
        if signed
        else (gradients.ATTRIBUTIONS, gradients.outputs.absolute)
    )
    config, truth = run.config, run.dataset.truth
    images = data.scale(jnp.asarray(train.images[:500]))
    network = stages.network_of(config, run.dataset)
    fresh = networks.init(network, stages.key_of(config.seed, "untrained"), run.image_shape)
    known = dict(forms) | {
        "expected_gradients": gradients.expected_gradients(images, pixels=pixels),
        "gradient_untrained": controls.of_network(forms["gradient"], networks.logits_fn(network, fresh)),
        "gradient_elsewhere": controls.of_another_image(forms["gradient"], images),
    }
    if truth is not None and truth.mask is not None:
        whole = stages.used(run, train)
        every = [jnp.concatenate([jnp.asarray(one), jnp.asarray(two)]) for one, two in zip(train, test, strict=True)]
        assert whole.truth is not None
        codes = jnp.concatenate([whole.truth.train_codes, whole.truth.test_codes])
        known["true_mask"] = controls.known_maps(data.scale(every[0]), jax.jit(jax.vmap(truth.mask))(every[1], codes))
    return {name: known[name] for name in attributions_of(config, run.dataset)}


def attributions_of(config: FaithfulnessConfig, dataset: data.Dataset) -> tuple[str, ...]:
    """Those of the configuration, and the true mask wherever there is one."""
    given = [name for name in config.attributions if name != "true_mask"]
    return (*given, *(["true_mask"] if dataset.truth is not None and dataset.truth.mask is not None else []))


def measure(run: Run) -> experiment.Arrays:
    """Hits of networks and retrainings, as in 3.2; measures of each test image `[network, attribution, image]`."""
    config = replace(run.config, attributions=attributions_of(run.config, run.dataset))
    run = run._replace(config=config)
    splits = subsets(config, run.dataset)
    methods, signed = (methods_of(run, *splits, signed=form) for form in (False, True))
    trained = stages.train_networks(run, specs_of(config), splits[0])
    found = benchmarks.retrained_of(run, trained, splits, methods)
    found |= evaluation.hits_of(run, trained, splits[1], stages.key_of(config.seed, "faithfulness"))
    found |= masks_alone(run, trained, splits, methods)
    return found | measured_of(run, trained, splits[1], methods, signed)


def masks_alone(run: Run, trained: runs.Classifiers, splits: Sequence[data.Split], methods) -> experiment.Arrays:
    """Retrainings on the occluding masks of the standard network, white on the mean colour, without any image."""
    config = run.config
    grid = [one for one in faithfulness.grid([*methods], config.percentiles, 1) if one.benchmark == KAR]
    size = retraining.kept_stack_size(run, trained.network)
    tools = retraining.tools_of(config, trained.network, splits[0], size, methods)

    def occluded() -> list[faithfulness.Examples]:
        whole = retraining.occluded_examples(run, "standard", trained.at(0), tools, grid, splits)
        white = 255 if splits[0].images.dtype == np.uint8 else 1
        return [one._replace(images=np.full_like(np.asarray(one.images), white)) for one in whole]

    hits = retraining.hits_of(run, "masks", grid, tools, occluded)
    return {"masks": np.array(list(hits)), "mask_hits": np.stack(list(hits.values()))}


def measured_of(run: Run, trained: runs.Classifiers, test: data.Split, methods, signed) -> experiment.Arrays:
    """The measures that need no retraining, and some maps for the gallery; one network after another is kept."""
    fresh = networks.init(trained.network, stages.key_of(run.config.seed, "randomised"), run.image_shape)
    of_one = measures.of_images(
        trained.network, fresh, methods, signed, run.config.sensitivity_samples, run.config.chunk
    )
    key = stages.key_of(run.config.seed, "measures")
    parts = measures.of_networks(run, trained.names, trained.at, test, key, of_one)
    return measures.joined(parts, list(methods), test.images)


def with_recorded(config: FaithfulnessConfig, arrays: experiment.Arrays) -> FaithfulnessConfig:
    """The configuration with the attributions that were measured, by name."""
    return replace(config, attributions=tuple(arrays["attributions"].tolist()))


def tabulate(config: FaithfulnessConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each kind of network and attribution; one for each measure: whether it can be believed."""
    config = with_recorded(config, arrays)
    specs, rows = specs_of(config), []
    masks = dict(zip(arrays["masks"].tolist(), arrays["mask_hits"].mean(1), strict=True))
    retrained = {measure: values_of(config, arrays, measure) for measure in RETRAINED}
    for kind, members in kinds_of(specs).items():
        accuracies = evaluation.accuracies(config, arrays, members)
        for index, name in enumerate(config.attributions):
            row = {**specs[members[0]].row, "network_seeds": len(members), **accuracies}
            row["attribution"] = name.replace("_", " ")
            for benchmark in (ROAR, KAR):
                own = retrained[benchmark][kind, name]
                row |= with_interval(benchmark, (own.mean(), *faithfulness.bounds(own)))
            row["diff_roar"] = retrained["diff_roar"][kind, name].mean()
            for measure in MEASURES:
                if f"measure/{measure}" in arrays:
                    row[measure] = np.nanmean(arrays[f"measure/{measure}"][members, index])
            if specs[members[0]].norm is None:
                given = [retraining.named(faithfulness.Retraining(KAR, name, q, 0)) for q in config.percentiles]
                row["mask_alone"] = max(masks[one] for one in given)
            rows.append(row)
    return {
        "rows": rows,
        "measures": measures_table(config, arrays),
        "notes": evaluation.notes_of(specs, "l2", arrays),
    }


Values = Mapping[tuple[str, str], np.ndarray]


def values_of(config: FaithfulnessConfig, arrays: experiment.Arrays, measure: str) -> Values:
    """A measure's values `[seed, image]`, higher better, by kind of network and attribution.

    Of what is retrained they are averages over the retrainings of each network, or, where networks have one seed, its
    retrainings.
    """
    specs = specs_of(config)
    places, names = kinds_of(specs), list(enumerate(config.attributions))
    if measure not in RETRAINED:
        values = (1 if MEASURES[measure] else -1) * arrays[f"measure/{measure}"]
        return {(kind, name): values[members, index] for kind, members in places.items() for index, name in names}
    if measure != "diff_roar":
        areas = benchmarks.areas_of(config, arrays)
        return {(kind, name): areas(kind, measure, name) for kind in places for _, name in names}
    hits = benchmarks.hits_of(config, arrays)

    def own(place: int, name: str) -> np.ndarray:
        kept, removed = (hits(specs[place], benchmark, name) for benchmark in (KAR, ROAR))
        return faithfulness.diff_roar(config.percentiles, kept, removed)

    return {
        (kind, name): benchmarks.of_seeds([own(place, name) for place in members])
        for kind, members in places.items()
        for _, name in names
    }


def measures_table(config: FaithfulnessConfig, arrays: experiment.Arrays) -> list[Row]:
    """Of each measure its rank correlation with smoothness over attributions and networks, and the truth's place."""
    rows = []
    smooth = values_of(config, arrays, "smoothness")
    real = [name for name in config.attributions if name not in CONTROLS and name != "true_mask"]
    for measure in measures_of(arrays):
        values = values_of(config, arrays, measure)
        means = {pair: np.nanmean(of) for pair, of in values.items()}
        pairs = [pair for pair in values if pair[1] in real]
        found = np.array([[means[pair], np.nanmean(smooth[pair])] for pair in pairs])
        row: Row = {"measure": measure.replace("_", " "), "with_smoothness": _rank(found)}
        if "true_mask" in config.attributions:
            others = [means[STANDARD, name] for name in config.attributions if name != "true_mask"]
            row["above_true_mask"] = int(np.sum(np.array(others) > means[STANDARD, "true_mask"]))
        rows.append(row)
    return rows


def measures_of(arrays: experiment.Arrays) -> list[str]:
    """The measures of faithfulness that a run has; smoothness is none."""
    return [
        *RETRAINED,
        *(name for name in MEASURES if name != "smoothness" and f"measure/{name}" in arrays),
    ]


def _rank(pairs: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(*pairs.T).statistic)


def difference(one: np.ndarray, two: np.ndarray) -> tuple[float, float, float]:
    """The mean of paired differences `[seed, image]` and its interval."""
    gaps = one - two
    gaps = gaps[:, np.isfinite(gaps).all(axis=0)]
    low, high = faithfulness.bounds(gaps)
    return float(gaps.mean()), float(low), float(high)


def claim(config: FaithfulnessConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """Whether attributions beat chance and controls, the paper's open questions, and which measures hold up."""
    del tables
    config = with_recorded(config, arrays)
    specs = specs_of(config)
    robust = {norm: max(specs, key=lambda one: (one.norm == norm, one.epsilon)).kind for norm in config.norms}
    named = {name: name.replace("_", " ") for name in config.attributions}
    for measure in (ROAR, KAR, "diff_roar", "road"):
        values = values_of(config, arrays, measure)
        title = measure.upper().replace("DIFF_ROAR", "DiffROAR")
        images = next(iter(values.values())).shape[1]
        of_each = f"{config.retraining_seeds} retrainings of each, " if measure in RETRAINED else ""
        over = claims.Over(config.network_seeds, f"{of_each}{images} images")
        of = partial(_judged, values, over)
        if {"gradient", "gradient_elsewhere"} <= {*named}:
            for kind in (STANDARD, *robust.values()):
                text = "the gradient at the image beats the gradient at another image (our test)"
                yield of(text, f"{title}; {kind}", (kind, "gradient"), (kind, "gradient_elsewhere"))
        for kind in robust.values():
            if {"gradient", "gradient_blurred"} <= {*named}:
                text = "robust gradients beat blurred standard ones (our test)"
                yield of(text, f"{title}; {kind}", (kind, "gradient"), (STANDARD, "gradient_blurred"))
            for name in ("integrated_gradients", "deep_lift", "lrp"):
                if {name, "gradient_times_input"} <= {*named}:
                    text = f"on a robust network {named[name]} beats Gradient * Input (open question a)"
                    yield of(text, f"{title}; {kind}", (kind, name), (kind, "gradient_times_input"))
        if {"l2", "linf"} <= {*robust}:
            for name in config.attributions:
                if name not in CONTROLS and name != "true_mask":
                    text = "l-inf training scores above l2 training, strongest networks (open question b)"
                    yield of(text, f"{title}; {named[name]}", (robust["linf"], name), (robust["l2"], name))
        # Where all seeds share Random's retrainings another draw may differ.
        if "noise_blurred" in named and measure in (ROAR, KAR) and benchmarks.has_own_random(config, arrays):
            nothing = {**values, (STANDARD, RANDOM): np.zeros_like(values[STANDARD, "noise_blurred"])}
            text = "blurred noise, which knows nothing, scores no higher than noise (our test)"
            yield _judged(nothing, over, text, title, (STANDARD, RANDOM), (STANDARD, "noise_blurred"))
    if "true_mask" in named:
        yield from _truth(config, arrays)


def _judged(values: Values, over: claims.Over, text: str, group: str, one, two) -> Row:
    ours, low, high = difference(values[one], values[two])
    claimed = claims.Claim("3.3", text, group, "-", over)
    return claims.row(claimed, f"{ours:.3g}", low, high, claims.Steps(low, high))


def _truth(config: FaithfulnessConfig, arrays: experiment.Arrays) -> Iterator[Row]:
    """Whether a measure puts the true mask above every attribution and control of the standard network."""
    for measure in measures_of(arrays):
        if measure in ("pointing", "mass", "overlap", "sensitivity", "randomisation"):
            # By definition, or not about what is right.
            continue
        values = values_of(config, arrays, measure)
        gaps = [
            (*difference(values[STANDARD, "true_mask"], values[STANDARD, name]), name)
            for name in config.attributions
            if name != "true_mask"
        ]
        ours, low, high, nearest = min(gaps, key=lambda one: one[1])
        text = "the measure puts the true mask above every attribution of the standard network (our test)"
        over = claims.Over(config.network_seeds, f"{len(gaps)} attributions, the nearest")
        claimed = claims.Claim("3.3", text, measure.replace("_", " "), "-", over)
        judged = claims.Steps([one[1] for one in gaps], [one[2] for one in gaps])
        yield claims.row(claimed, f"{ours:.3g}, {nearest.replace('_', ' ')}", low, high, judged)


def draw(workdir: Path, config: FaithfulnessConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Scores with intervals by attribution, fronts against both accuracies, a gallery."""
    config = with_recorded(config, arrays)
    specs, rows = specs_of(config), tables["rows"]
    places = kinds_of(specs)
    colours = figures.palette([*places])
    kinds = [STANDARD, *{spec.norm: spec.kind for spec in specs if spec.norm}.values()]
    names = [name.replace("_", " ") for name in config.attributions]
    for benchmark in (ROAR, KAR):
        groups: dict[str, dict[str, list[figures.Interval]]] = {name: {} for name in names}
        for row in rows:
            if row["network"] in kinds:
                groups[row["attribution"]][row["network"]] = [interval_of(row, benchmark)]
        label = f"{benchmark.upper()} score, above 0 better than random pixels"
        figures.intervals_figure(workdir / f"scores_{benchmark}.svg", groups, {"random": 0.0}, label, colours)
    for against in ("test_accuracy", "robust_accuracy"):
        points = {}
        for name in [name for name in names if name.replace(" ", "_") not in (*CONTROLS, "true_mask")]:
            mine = [row for row in rows if row["attribution"] == name]
            points[name] = (np.array([row[against] for row in mine]), np.array([row[ROAR] for row in mine]))
        file = workdir / f"front_{against.split('_')[0]}.svg"
        figures.scatter_figure(file, points, against.replace("_", " "), "ROAR score", legend="attribution")
    maps = arrays["shown/maps"].astype(np.float32)
    for image in range(min(2, maps.shape[2])):
        grid = {kind: maps[members[0], :, image, :, :, None] for kind, members in places.items()}
        path = workdir / f"gallery_{image + 1}.svg"
        figures.image_grid(path, {"test image": arrays["shown/test"][image : image + 1]}, grid, headings=names)


EXPERIMENT = experiment.Experiment(
    name="faithfulness",
    title="3.3 Which attributions are faithful, and which measures",
    question="Do attributions beat controls that know nothing? Do others than the paper's do better on robust "
    "networks, and does l-inf training keep its gain? A measure is worth believing if the truth scores best by it.",
    config=FaithfulnessConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "network": "network",
        "attribution": "attribution",
        **{name: evaluation.COLUMNS[name] for name in ("test_accuracy", "robust_accuracy", "auto_attack")},
        **{"roar": "ROAR", "kar": "KAR"},
        **{"diff_roar": "DiffROAR", "road": "ROAD", "deletion": "deletion (lower is better)"},
        **{"insertion": "insertion", "infidelity": "infidelity (lower is better)"},
        **{"sensitivity": "sensitivity (lower is better)", "randomisation": "rank correlation, randomised network"},
        **{"smoothness": "smoothness", "pointing": "pointing game", "mass": "mass in the mask", "overlap": "overlap"},
        "mask_alone": "accuracy from the mask alone",
    },
    others={
        "measures": (
            "The measures: rank correlation with the maps' smoothness over attributions and networks; how many "
            "attributions and controls of the standard network stand above the true mask, where it is known",
            ("measure", "with_smoothness", "above_true_mask"),
        ),
        "notes": evaluation.NOTES,
    },
    captions={
        "gallery_*.svg": "Test image {}: each attribution's map (columns) for each network (rows).",
        "scores_*.svg": "Scores of each attribution and control by {}, of the standard and the strongest networks.",
        "front_*.svg": "ROAR score against {} accuracy, one point a network; the paper's pairs are gradient and "
        "gradient times input.",
    },
    takes="ten minutes",
    picture="scores_roar.svg",
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
