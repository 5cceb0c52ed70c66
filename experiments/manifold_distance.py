r"""Section 2.1: adversarial training confines loss gradients to the image manifold.

Trains a standard and several adversarially trained networks and a VAE-GAN, attacks the test images,
and measures how far the attacked images lie from the manifold and how much of each loss gradient lies
along it.

    python -m experiments.manifold_distance                                   # digits, minutes on 2 cores
    python -m experiments.manifold_distance --dataset=fashion_mnist --preset=quick
    python -m experiments.manifold_distance --dataset=mnist --preset=paper    # a large GPU

Expected: from the standard network over growing training epsilon the median distance falls and the
tangent fraction rises. Published modes of the rescaled distance (xent analysis, l2-xent networks):
MNIST 0.63 (standard), 0.60, 0.50, 0.42; Fashion-MNIST 0.62, 0.59, 0.53, 0.43; CIFAR-10 0.115, 0.112,
0.105, 0.094.
"""

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import claims, launch, pages, presets, settings, stages
from experiments.stages import Network
from robgrad import attacks, datasets, generative, losses, manifold, models, page, report, stacking
from robgrad.alignment import align
from robgrad.attributions import loss_gradient

FLAGS = flags.FLAGS
NAME = "manifold_distance"
settings.define(presets.ManifoldConfig)
TITLE = "2.1 Loss gradients and the image manifold"
QUESTION = (
    "Does adversarial training confine a network's loss gradient to the image manifold? If so, its adversarial "
    "examples lie nearer to their projection onto a VAE-GAN's manifold, and more of its gradient lies along it."
)
CAPTIONS = {
    "loss_gradients.png": "Gradients of the negative loss at the predicted label, from blue to red; with growing "
    "epsilon noise should give way to shapes.",
    "densities_*.png": "Distance of attacked images to the manifold, where clean images span 0 to 1 ({} analysis); the "
    "stronger a network's training, the farther left its curve should lie.",
    "tangent_fraction_*.png": "Share of the loss gradient along the manifold ({} analysis); it should grow with "
    "epsilon and lie above what a random direction gets (dashed).",
    "attacked_*.png": "Test images and what the {} analysis attack makes of them; those of robust networks should "
    "look like other classes, not like noise.",
    "vae_gan.png": "The manifold itself: reconstructions should resemble the test images, samples other such images.",
}
SHOWN = 10
COLUMNS = (
    *("network", "analysis_loss", "test_accuracy", "robust_accuracy", "attack_success", "median_distance"),
    *("clean_median_distance", "rescaled_mode", "transfer_median_distance", "tangent_fraction"),
    "tangent_fraction_chance",
)


def analyser(config: presets.ManifoldConfig, model, generator: generative.VaeGan, loss: losses.Loss, mesh):
    """Compiles the measurement of one test image on one network, for all of both."""
    attack = attacks.pgd(attacks.L2, loss, config.analysis_steps)

    def analyse(shared, params, example):
        variables, standard_params, epsilon, step_size = shared
        (key, (pixels, label)), tangent = example
        image = datasets.scale(pixels)
        attack_key, sampling_key = jax.random.split(key)
        own, standard = (models.logits_fn(model, given) for given in (params, standard_params))
        attacked = attack(attack_key, own, image, label, epsilon, step_size)
        surface = manifold.from_vae_gan(generator, variables, sampling_key if config.sampled_projection else None)
        return {
            "alignment": align(own, surface, image, attacked, loss=loss, tangent=tangent),
            "own": own(image).argmax() != own(attacked).argmax(),
            "transfer": standard(image).argmax() != standard(attacked).argmax(),
            "attacked": attacked,
            "gradient": -loss_gradient(own, image),
        }

    return stacking.per_example(analyse, mesh, config.chunk)


def tangent_spaces(config: presets.ManifoldConfig, generator: generative.VaeGan):
    """Compiles the tangent space at each image; they are the same for all networks and losses."""

    def at(_, variables, pixels):
        return manifold.tangent_space(manifold.from_vae_gan(generator, variables), datasets.scale(pixels))

    run = stacking.per_example(at, stacking.device_mesh(1, config.chunk), config.chunk)
    return lambda variables, images: stacking.replica(run((), stacking.stack([variables]), images), 0)


def measure(
    config: presets.ManifoldConfig, model, params, generator, variables, test: datasets.Split, key, workdir: Path
):
    """Analyses all test images on all networks, a block of images after another, for each analysis loss.

    Each block is saved in the run's `analysis` and, where it was saved before, read from there. Attacked
    images and gradients are kept of the first block only.
    """
    mesh = stacking.device_mesh(stacking.size(params), config.chunk)
    tangents = tangent_spaces(config, generator)
    runs = {name: analyser(config, model, generator, loss, mesh) for name, loss in analysis_losses(config).items()}
    shared = (variables, stacking.replica(params, 0), config.analysis_epsilon, config.analysis_step_size)
    keys = jax.random.split(key, len(test.labels))
    parts: dict[str, list] = {name: [] for name in runs}
    blocks = list(settings.blocks(len(test.labels), 5 * config.chunk))
    for block, rows in launch.counted(blocks, f"analysing {len(test.labels)} images, {stacking.size(params)} networks"):
        images = datasets.Split(*(leaf[rows] for leaf in test))
        tangent = None
        for name, run in runs.items():
            path = workdir / "analysis" / f"{name}-{block}.npz"
            part = report.read_arrays(path)
            if part is None:
                tangent = tangents(variables, images.images) if tangent is None else tangent
                part = jax.device_get(run(shared, params, ((keys[rows], images), tangent)))
                part = part.pop("alignment")._asdict() | part
                if block:
                    part |= {field: part[field][:, :0] for field in ("attacked", "gradient")}
                report.write_arrays(path, part)
            parts[name].append(part)
    join = lambda *leaves: np.concatenate(leaves, axis=1)[:, : len(test.labels)]  # noqa: E731
    return {name: jax.tree.map(join, *pieces) for name, pieces in parts.items()}


def analysis_losses(config: presets.ManifoldConfig) -> dict[str, losses.Loss]:
    """The losses of the analysis attacks, the margin unbounded."""
    return {name: settings.losses_of(config, bound=np.inf)[name] for name in config.analysis_losses}


def rows_of(networks: list[Network], analysis_loss: str, accuracy, robust_accuracy, measured) -> list[report.Row]:
    """One row a network: its accuracies, and distances and alignment under one analysis attack."""
    rows = []
    for index, network in enumerate(networks):
        one = {name: values[index] for name, values in measured.items()}
        clean = one["distance"]
        row = {
            **network.row,
            "analysis_loss": analysis_loss,
            "test_accuracy": accuracy[index],
            "robust_accuracy": robust_accuracy[index],
        }
        for prefix, filter_name in (("", "own"), ("transfer_", "transfer")):
            success = one[filter_name]
            kept = one["attacked_distance"][success]
            row |= {
                f"{prefix}attack_success": np.mean(success),
                f"{prefix}median_distance": np.median(kept) if kept.size else np.nan,
                **_bounds(f"{prefix}median_distance", kept, np.median),
                f"{prefix}mean_distance": np.mean(kept) if kept.size else np.nan,
                f"{prefix}rescaled_mode": report.mode(rescaled(kept, clean)),
            }
        fractions = one["tangent_fraction"][np.isfinite(one["tangent_fraction"])]
        row |= {
            "clean_median_distance": np.median(clean),
            "clean_rescaled_mode": report.mode(rescaled(clean, clean)),
            "tangent_fraction": np.mean(fractions) if fractions.size else np.nan,
            **_bounds("tangent_fraction", fractions, np.mean),
            "tangent_fraction_chance": np.mean(one["chance"]),
            "gradient_norm": np.median(one["gradient_norm"]),
            "zero_gradients": int(np.sum(~np.isfinite(one["tangent_fraction"]))),
        }
        rows.append(row)
    return rows


def _bounds(name: str, values: np.ndarray, statistic) -> report.Row:
    return dict(zip((f"{name}_low", f"{name}_high"), report.interval(values, statistic), strict=True))


def per_image(everything) -> dict[str, np.ndarray]:
    """What was measured of each image `[network, image]`, by analysis loss and name."""
    figures = ("attacked", "gradient")
    return {
        f"{loss}/{name}": values
        for loss, measured in everything.items()
        for name, values in measured.items()
        if name not in figures
    }


def rescaled(distances: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Distances in units where the clean test data's own span [0, 1]."""
    return (distances - clean.min()) / np.ptp(clean)


def draw(
    workdir, config: presets.ManifoldConfig, networks: list[Network], analysis_loss: str, measured, test, rows
) -> None:
    """The figures of one analysis attack: densities, loss gradients, attacked images, tangent fractions."""
    names = [network.name for network in networks]
    clean = measured["distance"][0]
    pairs = dict.fromkeys((network.norm, network.loss) for network in networks if network.norm)
    panels = {}
    for norm, loss in pairs:
        curves = {"test data": rescaled(clean, clean)}
        for index, network in enumerate(networks):
            if network.norm is None or (network.norm, network.loss) == (norm, loss):
                kept = measured["attacked_distance"][index][measured["own"][index]]
                curves[network.name] = rescaled(kept, clean)
        panels[f"{norm}, {loss}"] = curves
    images = np.asarray(datasets.scale(jnp.asarray(test.images[:SHOWN])))
    by_name = {field: dict(zip(names, measured[field][:, :SHOWN], strict=True)) for field in ("attacked", "gradient")}
    xlabel = f"distance to the manifold, rescaled ({analysis_loss} analysis)"
    report.density_figure(workdir / f"densities_{analysis_loss}.png", panels, xlabel)
    report.image_grid(workdir / f"attacked_{analysis_loss}.png", {"test image": images} | by_name["attacked"])
    if analysis_loss == config.analysis_losses[0]:
        report.image_grid(workdir / "loss_gradients.png", by_name["gradient"], signed=True)
    report.bar_figure(
        workdir / f"tangent_fraction_{analysis_loss}.png",
        names,
        [row["tangent_fraction"] for row in rows],
        ("random direction", rows[0]["tangent_fraction_chance"]),
        "fraction of the loss gradient's squared norm along the manifold",
    )


def draw_manifold(workdir, generator: generative.VaeGan, variables, test: datasets.Split, key) -> None:
    """Reconstructions of test images, and images decoded from the prior."""
    surface = manifold.from_vae_gan(generator, variables)
    images = datasets.scale(jnp.asarray(test.images[:SHOWN]))
    project = jax.jit(jax.vmap(lambda image: manifold.project(surface, image)))
    codes = jax.random.normal(key, (2 * SHOWN, generator.latent))
    samples = np.asarray(jax.jit(jax.vmap(surface.decode))(codes))
    shown = {
        "test image": np.asarray(images),
        "reconstruction": np.asarray(project(images)),
        "sample": samples[:SHOWN],
        "sample ": samples[SHOWN:],
    }
    report.image_grid(workdir / "vae_gan.png", shown)


def run(
    workdir: Path, dataset: datasets.Dataset, config: presets.ManifoldConfig, source: stages.Source | None = None
) -> tuple[Path, dict[str, Any]]:
    """Runs, continues or reads the experiment; returns its directory and results."""

    def compute(workdir: Path, place: Mapping[str, str]) -> dict[str, Any]:
        return _run(workdir, dataset, config, place, source)

    return pages.once(workdir, NAME, TITLE, dataclasses.asdict(config), part_of, compute)


def _run(workdir: Path, dataset: datasets.Dataset, config: presets.ManifoldConfig, place, source) -> dict[str, Any]:
    began = time.monotonic()
    train, test = settings.subsets(config, dataset)
    networks = stages.networks_of(config)
    model, params = stages.train_networks(config, networks, dataset, train, workdir, source)
    generator, variables = stages.train_manifold(config, train, workdir, source)
    keys = jax.random.split(stages.key_of(config.seed, NAME), 3)
    draw_manifold(workdir, generator, variables, test, keys[0])

    accuracy, robust_accuracy = stages.accuracies_of(config, model, params, test, keys[1])
    everything = measure(config, model, params, generator, variables, test, keys[2], workdir)
    report.write_arrays(workdir / "measurements.npz", per_image(everything))
    rows = []
    for analysis_loss, measured in everything.items():
        rows += rows_of(networks, analysis_loss, accuracy, robust_accuracy, measured)
        draw(workdir, config, networks, analysis_loss, measured, test, rows[-len(networks) :])
    found = claims.of_manifold(config, networks, everything)
    asked = dataclasses.asdict(config)
    results = report.write_results(workdir, NAME, asked, place, rows, time.monotonic() - began, claims=found)
    shutil.rmtree(workdir / "analysis", ignore_errors=True)
    return results


def part_of(results: Mapping[str, Any]) -> pages.Part:
    """What the experiment puts on a page."""
    table = page.Table("Networks and analysis attacks; every column is in results.csv", results["rows"], COLUMNS)
    return pages.Part(
        f"{TITLE}: {results['config']['dataset']}", QUESTION, CAPTIONS, [table], results.get("claims", [])
    )


def main() -> None:
    """Runs the experiment of the flags."""
    dataset = datasets.load(FLAGS.dataset, FLAGS.data_dir)
    config = settings.from_flags(presets.ManifoldConfig, presets.MANIFOLD, dataset)
    workdir, results = run(settings.workdir(NAME), dataset, config, stages.source_of_flags())
    pages.show(workdir, results, COLUMNS)


if __name__ == "__main__":
    launch.run(main)
