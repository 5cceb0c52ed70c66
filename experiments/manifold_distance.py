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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import launch, presets
from robgrad import attacks, checkpoints, datasets, losses, manifold, models, report, stacking, training, vae_gan
from robgrad.alignment import align, loss_gradient

FLAGS = flags.FLAGS
NAME = "manifold_distance"
SHOWN = 10
COLUMNS = (
    *("network", "analysis_loss", "test_accuracy", "robust_accuracy", "attack_success", "median_distance"),
    *("clean_median_distance", "rescaled_mode", "transfer_median_distance", "tangent_fraction"),
    "tangent_fraction_chance",
)


class Network(NamedTuple):
    """How one network is trained; a standard one has no norm, no loss and epsilon 0."""

    norm: str | None
    loss: str | None
    epsilon: float

    @property
    def name(self) -> str:
        """For instance `l2-xent-4`, or `standard`."""
        return f"{self.norm}-{self.loss}-{self.epsilon:g}" if self.norm else "standard"


def stacks_of(config: presets.Config) -> list[list[Network]]:
    """The networks of the experiment: the standard one, then a stack for each norm and training loss."""
    epsilons = {"l2": config.l2_epsilons, "linf": config.linf_epsilons}
    pairs = [(norm, loss) for norm in config.norms for loss in config.train_losses]
    robust = [[Network(norm, loss, epsilon) for epsilon in sorted(epsilons[norm])] for norm, loss in pairs]
    return [[Network(None, None, 0.0)], *robust]


def train_networks(config: presets.Config, dataset: datasets.Dataset, train: datasets.Split, key) -> Any:
    """Trains every stack in turn; returns the parameters of all networks as one stack, the standard one first."""
    model = models.classifier_for(train.images.shape[1:], len(dataset.classes))
    train_losses = presets.losses_of(config, bound=500.0)
    step_sizes = {None: 0.0, "l2": config.l2_step_size, "linf": config.linf_step_size}
    trained = []
    for index, networks in enumerate(stacks_of(config)):
        norm, loss = networks[0].norm, networks[0].loss
        attack = attacks.no_attack
        if norm and loss:
            attack = attacks.pgd(attacks.NORMS[norm], train_losses[loss], config.attack_steps)
        keys = jax.random.split(jax.random.fold_in(key, index), len(networks))
        states = stacking.stack([training.init_classifier(model, train.images.shape[1:], one) for one in keys])
        count = len(networks)
        numbers = training.Numbers(
            jnp.array([network.epsilon for network in networks]),
            jnp.full(count, step_sizes[norm]),
            jnp.full(count, config.learning_rate),
        )
        states = training.fit(
            training.classifier_step(model, attack),
            states,
            numbers,
            train,
            mesh=stacking.device_mesh(count, config.batch_size),
            batch_size=config.batch_size,
            epochs=config.epochs if norm else config.standard_epochs,
            shuffle=config.shuffle,
            names=[network.name for network in networks],
            report=launch.progress(f"training {f'{norm}-{loss}, {count} networks' if norm else 'standard'}"),
        )
        trained.append(states.params)
    return model, stacking.concatenate(trained)


def train_manifold(config: presets.Config, train: datasets.Split, key):
    """Trains the VAE-GAN; returns its networks and its variables."""
    model = vae_gan.vae_gan_for(train.images.shape[1:])
    model = model._replace(discriminator_steps=config.discriminator_steps)
    states = training.fit(
        vae_gan.train_step(model),
        stacking.stack([vae_gan.init(model, train.images.shape[1:], key)]),
        vae_gan.Numbers(jnp.array([config.reconstruction_weight]), jnp.array([config.vae_gan_learning_rate])),
        train,
        mesh=stacking.device_mesh(1, config.vae_gan_batch_size),
        batch_size=config.vae_gan_batch_size,
        epochs=config.vae_gan_epochs,
        shuffle=config.shuffle,
        names=["VAE-GAN"],
        report=launch.progress("training VAE-GAN"),
    )
    return model, stacking.replica(states.params, 0)


def analyser(config: presets.Config, model, generator: vae_gan.VaeGan, loss: losses.Loss, mesh):
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


def tangent_spaces(config: presets.Config, generator: vae_gan.VaeGan):
    """Compiles the tangent space at each image; they are the same for all networks and losses."""

    def at(_, variables, pixels):
        return manifold.tangent_space(manifold.from_vae_gan(generator, variables), datasets.scale(pixels))

    run = stacking.per_example(at, stacking.device_mesh(1, config.chunk), config.chunk)
    return lambda variables, images: stacking.replica(run((), stacking.stack([variables]), images), 0)


def measure(config: presets.Config, model, params, generator, variables, test: datasets.Split, key):
    """Analyses all test images on all networks, a block of images after another, for each analysis loss.

    Attacked images and gradients are kept of the first block only.
    """
    mesh = stacking.device_mesh(stacking.size(params), config.chunk)
    tangents = tangent_spaces(config, generator)
    runs = {name: analyser(config, model, generator, loss, mesh) for name, loss in analysis_losses(config).items()}
    shared = (variables, stacking.replica(params, 0), config.analysis_epsilon, config.analysis_step_size)
    keys = jax.random.split(key, len(test.labels))
    parts: dict[str, list] = {name: [] for name in runs}
    progress = launch.progress(f"analysing {len(test.labels)} images, {stacking.size(params)} networks")
    for rows in (blocks := list(presets.blocks(len(test.labels), 5 * config.chunk))):
        images = datasets.Split(*(leaf[rows] for leaf in test))
        examples = ((keys[rows], images), tangents(variables, images.images))
        for name, run in runs.items():
            part = jax.device_get(run(shared, params, examples))
            if parts[name]:
                part |= {field: part[field][:, :0] for field in ("attacked", "gradient")}
            parts[name].append(part)
        done = len(parts[name])
        progress(training.Progress(done, len(blocks), done / len(blocks), {}))
    join = lambda *leaves: np.concatenate(leaves, axis=1)[:, : len(test.labels)]  # noqa: E731
    return {name: jax.tree.map(join, *pieces) for name, pieces in parts.items()}


def analysis_losses(config: presets.Config) -> dict[str, losses.Loss]:
    """The losses of the analysis attacks, the margin unbounded."""
    return {name: presets.losses_of(config, bound=np.inf)[name] for name in config.analysis_losses}


def rows_of(networks: list[Network], analysis_loss: str, accuracy, robust_accuracy, measured) -> list[report.Row]:
    """One row a network: its accuracies, and distances and alignment under one analysis attack."""
    rows = []
    for index, network in enumerate(networks):
        alignment = jax.tree.map(lambda leaf, index=index: leaf[index], measured["alignment"])
        clean = alignment.distance
        row = {
            "network": network.name,
            "train_norm": network.norm,
            "train_loss": network.loss,
            "train_epsilon": network.epsilon,
            "analysis_loss": analysis_loss,
            "test_accuracy": accuracy[index],
            "robust_accuracy": robust_accuracy[index],
        }
        for prefix, filter_name in (("", "own"), ("transfer_", "transfer")):
            success = measured[filter_name][index]
            kept = alignment.attacked_distance[success]
            row |= {
                f"{prefix}attack_success": np.mean(success),
                f"{prefix}median_distance": np.median(kept) if kept.size else np.nan,
                **_bounds(f"{prefix}median_distance", kept, np.median),
                f"{prefix}mean_distance": np.mean(kept) if kept.size else np.nan,
                f"{prefix}rescaled_mode": report.mode(rescaled(kept, clean)),
            }
        fractions = alignment.tangent_fraction[np.isfinite(alignment.tangent_fraction)]
        row |= {
            "clean_median_distance": np.median(clean),
            "clean_rescaled_mode": report.mode(rescaled(clean, clean)),
            "tangent_fraction": np.mean(fractions) if fractions.size else np.nan,
            **_bounds("tangent_fraction", fractions, np.mean),
            "tangent_fraction_chance": np.mean(alignment.chance),
            "gradient_norm": np.median(alignment.gradient_norm),
            "zero_gradients": int(np.sum(~np.isfinite(alignment.tangent_fraction))),
        }
        rows.append(row)
    return rows


def _bounds(name: str, values: np.ndarray, statistic) -> report.Row:
    return dict(zip((f"{name}_low", f"{name}_high"), report.interval(values, statistic), strict=True))


def per_image(measured) -> dict[str, np.ndarray]:
    """What was measured of each image `[network, image]`, by analysis loss and name."""
    return {
        f"{loss}/{name}": values
        for loss, parts in measured.items()
        for name, values in (
            parts["alignment"]._asdict() | {"own": parts["own"], "transfer": parts["transfer"]}
        ).items()
    }


def rescaled(distances: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Distances in units where the clean test data's own span [0, 1]."""
    return (distances - clean.min()) / np.ptp(clean)


def draw(workdir, config: presets.Config, networks: list[Network], analysis_loss: str, measured, test, rows) -> None:
    """The figures of one analysis attack: densities, loss gradients, attacked images, tangent fractions."""
    names = [network.name for network in networks]
    clean = measured["alignment"].distance[0]
    pairs = dict.fromkeys((network.norm, network.loss) for network in networks if network.norm)
    panels = {}
    for norm, loss in pairs:
        curves = {"test data": rescaled(clean, clean)}
        for index, network in enumerate(networks):
            if network.norm is None or (network.norm, network.loss) == (norm, loss):
                kept = measured["alignment"].attacked_distance[index][measured["own"][index]]
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


def draw_manifold(workdir, generator: vae_gan.VaeGan, variables, test: datasets.Split, key) -> None:
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


def main() -> None:
    """Runs the experiment of the flags."""
    dataset = datasets.load(FLAGS.dataset, FLAGS.data_dir)
    config, place = presets.from_flags(dataset), launch.environment()
    workdir, finished = checkpoints.open_run(presets.workdir(NAME), NAME, config._asdict(), place)
    if finished:
        print(report.table(finished["rows"], COLUMNS), f"\nfinished already: {workdir}", sep="\n")
        return
    train, test = presets.subsets(config, dataset)
    networks = [network for stack in stacks_of(config) for network in stack]
    keys = jax.random.split(jax.random.key(config.seed), 5)

    model, params = train_networks(config, dataset, train, keys[0])
    generator, variables = train_manifold(config, train, keys[1])
    draw_manifold(workdir, generator, variables, test, keys[2])

    mesh = stacking.device_mesh(len(networks), config.chunk)
    robust_attack = attacks.pgd(attacks.L2, losses.cross_entropy, config.robust_steps)
    numbers = {"epsilon": config.robust_epsilon, "step_size": config.robust_step_size}
    accuracy, robust_accuracy = (
        np.mean(np.asarray(training.evaluate(model, attack, mesh)(params, test, keys[3], **numbers)) == test.labels, 1)
        for attack in (attacks.no_attack, robust_attack)
    )
    rows = []
    everything = measure(config, model, params, generator, variables, test, keys[4])
    report.write_arrays(workdir / "measurements.npz", per_image(everything))
    for analysis_loss, measured in everything.items():
        rows += rows_of(networks, analysis_loss, accuracy, robust_accuracy, measured)
        draw(workdir, config, networks, analysis_loss, measured, test, rows[-len(networks) :])
    report.write_results(workdir, NAME, config._asdict(), place, rows)
    print(report.table(rows, COLUMNS), f"\nresults and figures: {workdir}", sep="\n")


if __name__ == "__main__":
    launch.run(main)
