"""The stages that experiments share: stacks of classifiers and the VAE-GAN, each trained once and kept in the run.

A stage that has finished lies in the run directory's `networks` and is loaded; one under way goes on from
its last checkpoint; with `--networks_from`, what another run has trained in the same way is taken from there.
"""

import shutil
import zlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags

from experiments import launch, presets, settings
from robgrad import attacks, checkpoints, datasets, generative, losses, models, runs, stacking, training, vae_gan

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "networks_from", None, "Directory of another run, trained alike, whose networks and manifold are used."
)
flags.DEFINE_bool("shard_data", False, "Split the training data over devices instead of copying it to each.")

MANIFOLD = "vae-gan"


class Network(NamedTuple):
    """How one network is trained; a standard one has no norm, no loss and epsilon 0."""

    norm: str | None = None
    loss: str | None = None
    epsilon: float = 0.0

    @property
    def name(self) -> str:
        """For instance `l2-xent-4`, or `standard`."""
        return f"{self.stage}-{self.epsilon:g}" if self.norm else self.stage

    @property
    def stage(self) -> str:
        """The stack it is trained in: networks of one norm and loss are one."""
        return f"{self.norm}-{self.loss}" if self.norm else "standard"

    @property
    def row(self) -> dict[str, Any]:
        """What tables say of it."""
        return {
            "network": self.name,
            "train_norm": self.norm,
            "train_loss": self.loss,
            "train_epsilon": self.epsilon,
        }


def networks_of(config: presets.Config) -> list[Network]:
    """The networks of an experiment: the standard one, then those of each norm and training loss."""
    epsilons = {"l2": config.l2_epsilons, "linf": config.linf_epsilons}
    pairs = [(norm, loss) for norm in config.norms for loss in config.train_losses]
    return [Network(), *(Network(norm, loss, epsilon) for norm, loss in pairs for epsilon in sorted(epsilons[norm]))]


def key_of(seed: int, name: str) -> jax.Array:
    """A random key that depends on the seed and a name alone, not on what else a run does."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


class Source(NamedTuple):
    """Another run, whose networks are used; a strict one must have trained its networks as this run would."""

    run: Path
    strict: bool = True


class Plan(NamedTuple):
    """A stage of training: the step, the stack it starts from, and what `training.fit` is told."""

    name: str
    step: training.Step
    states: training.TrainState
    numbers: Any
    names: Sequence[str]
    batch_size: int
    epochs: int
    shuffle: bool

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `training.fit`."""
        mesh = stacking.device_mesh(len(self.names), self.batch_size)
        wanted = {name: getattr(self, name) for name in ("batch_size", "epochs", "shuffle", "names")}
        return wanted | {"mesh": mesh, "shard_data": FLAGS.shard_data}


def source_of_flags() -> Source | None:
    """The run of `--networks_from`."""
    return Source(Path(FLAGS.networks_from)) if FLAGS.networks_from else None


def stacks_of(networks: Sequence[Network]) -> list[list[Network]]:
    """The networks by the stack they are trained in, in their order."""
    return [list(group) for _, group in groupby(networks, lambda network: network.stage)]


def train_networks(
    config: presets.Config,
    networks: Sequence[Network],
    dataset: datasets.Dataset,
    train: datasets.Split,
    run: Path,
    source: Source | None = None,
) -> tuple[nn.Module, Any]:
    """Trains, continues or loads the networks, a stack for each norm and loss; returns the model and the stack."""
    stacks = []
    for members in stacks_of(networks):
        with launch.patiently():
            stacks.append(_stack(config, members, dataset, train, run, source))
    return models.classifier_for(train.images.shape[1:], len(dataset.classes)), stacking.concatenate(stacks)


def _stack(config, members: list[Network], dataset, train, run: Path, source: Source | None):
    """The parameters of one stack, loaded, or made and kept."""
    name = members[0].stage
    stack = checkpoints.finished(run / "networks" / name, checkpoints.load_networks)
    if stack is not None:
        return stack.params
    params = _completed(config, members, dataset, train, run, source)
    about = {
        "kind": "classifier",
        "image_shape": list(train.images.shape[1:]),
        "classes": len(dataset.classes),
        "networks": [network.row for network in members],
        "training": training_settings(config, members[0]),
    }
    checkpoints.save_stack(run / "networks" / name, params, about)
    shutil.rmtree(run / "checkpoints" / name, ignore_errors=True)
    return params


def _completed(config, members: list[Network], dataset, train, run: Path, source: Source | None):
    """The parameters of one stack, from another run as far as that has them, the rest trained."""
    parts, names = [], []
    found = _taken(config, members[0], source)
    if found is not None:
        parts, names = [found.params], list(found.names)
    missing = [network for network in members if network.name not in names]
    if missing:
        parts.append(fit(run, classifiers_plan(config, missing, dataset), train).params)
        names += [network.name for network in missing]
    chosen = jnp.array([names.index(network.name) for network in members])
    return jax.tree.map(lambda leaf: leaf[chosen], stacking.concatenate(parts))


def classifiers_plan(config: presets.Config, networks: Sequence[Network], dataset: datasets.Dataset) -> Plan:
    """How networks of one norm and loss are trained."""
    image_shape, first = dataset.train.images.shape[1:], networks[0]
    model = models.classifier_for(image_shape, len(dataset.classes))
    attack = attacks.no_attack
    if first.norm and first.loss:
        loss = settings.losses_of(config, bound=500.0)[first.loss]
        attack = attacks.pgd(attacks.NORMS[first.norm], loss, config.attack_steps)
    # All start alike and see the data in one order, so that they differ by what they were trained against alone.
    start = training.init_classifier(model, image_shape, key_of(config.seed, "classifiers"))
    count = len(networks)
    numbers = training.Numbers(
        jnp.array([network.epsilon for network in networks]),
        jnp.full(count, config.l2_step_size if first.norm == "l2" else config.linf_step_size),
        jnp.full(count, config.learning_rate),
    )
    epochs = config.epochs if first.norm else config.standard_epochs
    names = [network.name for network in networks]
    step, states = training.classifier_step(model, attack), stacking.stack([start] * count)
    return Plan(first.stage, step, states, numbers, names, config.batch_size, epochs, config.shuffle)


def accuracies_of(config: presets.Config, model: nn.Module, params, test: datasets.Split, key: jax.Array):
    """Each network's accuracy on clean test images, and under the l2 cross-entropy attack of the configuration."""
    mesh = stacking.device_mesh(stacking.size(params), config.chunk)
    attack = attacks.pgd(attacks.L2, losses.cross_entropy, config.robust_steps)
    numbers = (config.robust_epsilon, config.robust_step_size)
    clean, robust = (training.accuracies(model, one, mesh, config.chunk) for one in (attacks.no_attack, attack))
    return clean(params, test, key, *numbers), robust(params, test, key, *numbers)


@launch.patiently()
def train_manifold(
    config: presets.ManifoldConfig, train: datasets.Split, run: Path, source: Source | None = None
) -> tuple[generative.VaeGan, Any]:
    """Trains, continues or loads the VAE-GAN; returns its networks and its variables."""
    path = run / "networks" / MANIFOLD
    done = checkpoints.finished(path, checkpoints.load_vae_gan)
    if done:
        return done
    settings = training_settings(config, None)
    about = {"kind": "vae_gan", "image_shape": list(train.images.shape[1:]), "training": settings}
    other = _stage_of(MANIFOLD, source)
    if source and other and _equal(checkpoints.read_about(other), settings, other, source.strict):
        model, variables = checkpoints.load_vae_gan(other)
        checkpoints.save_stack(path, stacking.stack([variables]), about)
        return model, variables
    model, plan = manifold_plan(config, train.images.shape[1:])
    states = fit(run, plan, train)
    checkpoints.save_stack(path, states.params, about)
    shutil.rmtree(run / "checkpoints" / MANIFOLD, ignore_errors=True)
    return model, stacking.replica(states.params, 0)


def manifold_plan(config: presets.ManifoldConfig, image_shape: Sequence[int]) -> tuple[generative.VaeGan, Plan]:
    """The VAE-GAN's networks, and how they are trained."""
    model = generative.vae_gan_for(image_shape)._replace(discriminator_steps=config.discriminator_steps)
    states = stacking.stack([vae_gan.init(model, image_shape, key_of(config.seed, MANIFOLD))])
    numbers = vae_gan.Numbers(jnp.array([config.reconstruction_weight]), jnp.array([config.vae_gan_learning_rate]))
    step, names = vae_gan.train_step(model), ["VAE-GAN"]
    epochs, shuffle = config.vae_gan_epochs, config.shuffle
    return model, Plan(MANIFOLD, step, states, numbers, names, config.vae_gan_batch_size, epochs, shuffle)


def fit(run: Path, plan: Plan, data) -> training.TrainState:
    """`training.fit` that goes on from the stage's last checkpoint, saves as the flags say, and stops when asked to."""
    label = f"training {plan.name}" + (f", {len(plan.names)} networks" if len(plan.names) > 1 else "")
    checkpoint = run / "checkpoints" / plan.name
    with (
        launch.patiently() as stop,
        checkpoints.states_of(checkpoint, plan.states) as (states, save),
        launch.progress(label, run / "tensorboard" / plan.name, plan.names) as report,
    ):
        saving = training.Checkpoints(save, *launch.checkpoint_interval())
        options = plan.options | {"stop": stop, "report": report, "checkpoints": saving}
        return training.fit(plan.step, states, plan.numbers, data, **options)


def training_settings(config: presets.Config, network: Network | None) -> dict[str, Any]:
    """What a network depends on beside its name: of the configuration, what its training reads."""
    names = ["dataset", "seed", "held_out", "train_examples", "shuffle", "matmul_precision"]
    if network is None:
        names += ["vae_gan_epochs", "vae_gan_batch_size", "vae_gan_learning_rate"]
        names += ["reconstruction_weight", "discriminator_steps"]
    else:
        names += ["batch_size", "learning_rate", "epochs" if network.norm else "standard_epochs"]
        names += ["attack_steps", f"{network.norm}_step_size", "zero_mask"] if network.norm else []
    return {name: getattr(config, name) for name in names}


def _stage_of(stage: str, source: Source | None) -> Path | None:
    """Where another run keeps a stage; None if there is no such run, or it has none such."""
    if source is None:
        return None
    return next((path for path in checkpoints.stages(source.run) if path.name == stage), None)


def _equal(about: Mapping[str, Any], settings: Mapping[str, Any], path: Path, strict: bool) -> bool:
    different = [name for name, value in settings.items() if about["training"].get(name) != value]
    if different and strict:
        name, found = different[0], about["training"].get(different[0])
        raise runs.RunError(
            f"--networks_from: {path} was trained with {name} = {found}, this run wants {settings[name]}; give the "
            "same settings, or leave --networks_from out"
        )
    return not different


def _taken(config, first: Network, source: Source | None) -> checkpoints.Networks | None:
    """The stack of another run that was trained as this network is to be."""
    path = _stage_of(first.stage, source)
    if source is None or path is None:
        return None
    found = checkpoints.load_networks(path)
    return found if _equal(found.about, training_settings(config, first), path, source.strict) else None
