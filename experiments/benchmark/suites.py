"""What the benchmark times: suites of tasks for the paper's classifiers, who takes part, and what all start from."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from robgrad import manifolds, networks

NETWORKS = {
    "digits": (networks.digits_cnn(), (8, 8, 1), 200),
    "mnist": (networks.mnist_cnn(), (28, 28, 1), 20),
    "cifar": (networks.cifar_cnn(), (32, 32, 3), 20),
}
RADII = {"l2": (1.0, 0.5), "linf": (0.1, 0.02)}
# Replicas in a stack and steps of each.
STACKS = {"digits": (16, 20), "mnist": (2, 2), "cifar": (4, 3)}
RETRAINING_BATCH = 100
# Images of the alignment; the 32x32 manifold has 128 dimensions, too many for a loop of Jacobians to be waited for.
ALIGNED = {"digits": 1000, "mnist": 200}
# Images of the suite of attributions.
ATTRIBUTED = {"digits": 1000, "mnist": 100}
ATTRIBUTIONS = ("integrated gradients, 50 steps", "50 gradients", "DeepLIFT", "LRP, epsilon", "ROAD's imputation")
OURS = {
    "robgrad": "contenders robgrad",
    "robgrad, Python loop": "contenders python_loop",
    "robgrad, bfloat16": "contenders bfloat16",
}
TORCH = {
    "PyTorch eager": "peers eager",
    "PyTorch channels-last": "peers channels_last",
    "PyTorch compiled": "peers compiled",
    "PyTorch bfloat16": "peers bfloat16",
}
VARIANTS = {
    "loops": {
        "robgrad": "contenders one_device",
        "robgrad, Python loop": "contenders python_loop",
        "robgrad, plain lax": "contenders plain_lax",
    },
    "attack": OURS
    | TORCH
    | {
        "torchattacks": "peers torchattacks",
        "foolbox (PyTorch)": "peers foolbox",
        "foolbox (JAX)": "contenders foolbox_jax",
        "ART": "peers art",
    },
    "train": OURS | TORCH,
    "retrain": {
        "robgrad": "contenders robgrad",
        "robgrad, one after another": "contenders one_after_another",
        "PyTorch eager": "peers eager",
        "PyTorch channels-last": "peers channels_last",
        "torch.func stack": "peers func_stack",
    },
    "gradients": {"robgrad": "contenders robgrad", **TORCH, "Captum": "peers captum"},
    "robustness": {
        "robgrad": "robustness robgrad",
        "AutoAttack (PyTorch)": "robustness pyautoattack",
        "torchattacks": "robustness torchattacks",
    },
    "attributions": {
        "robgrad": "attributions robgrad",
        "Captum": "attributions captum",
        "sparse solver": "attributions sparse",
    },
    "vae_gan": {name: OURS[name] for name in ("robgrad", "robgrad, Python loop")},
    "devices": {
        "robgrad": "contenders robgrad",
        "one device": "contenders one_device",
        "two processes": "contenders two_processes",
        "one device, XLA's defaults": "contenders plain_xla",
    },
}
SUITES = (*VARIANTS, "scale", "data", "startup")
PEERS = {
    **{name: "torch" for name in ("eager", "channels_last", "compiled", "bfloat16", "func_stack")},
    **{name: name for name in ("torchattacks", "foolbox", "art", "captum", "pyautoattack")},
    "foolbox_jax": "foolbox",
}
# Suites of which robgrad's peers are part.
COMPARED = ("attack", "train", "retrain", "gradients", "attributions", "robustness")
# The best float32 peer's time over robgrad's that is aimed at on a CPU.
TARGETS = {
    "attack": {"digits": 2.2, "mnist": 1.2, "cifar": 1.05},
    "train": {"digits": 1.8, "mnist": 1.2, "cifar": 1.05},
    "retrain": {"digits": 2.2, "mnist": 1.1, "cifar": 1.1},
    "gradients": {"digits": 1.1, "mnist": 1.1, "cifar": 1.1},
    "robustness": {"digits": 2.0, "witness": 2.0},
}


def target(suite: str, network: str, task: str) -> float | None:
    """What is aimed at in a task, None where nothing is."""
    if suite == "attributions":
        return {"50 gradients": None, "ROAD's imputation": 20.0}.get(task, 1.0)
    return 5.0 if task == "alignment" else TARGETS.get(suite, {}).get(network)


class Task(NamedTuple):
    """One task of a file of work: what contenders build, and what one run of it is.

    Attributes:
      build: kind and arguments.
      images: images it is done with.
      flops: floating-point operations of the networks' products and convolutions.
    """

    build: Sequence[Any]
    images: int
    flops: float


def forward_flops(model: networks.CNN, shape: Sequence[int]) -> float:
    """Of one image: two a multiplication, convolutions and dense layers alone."""
    (side, _, channels), total = shape, 0
    for stage in model.stages:
        for features in stage:
            total += 2 * side * side * model.window**2 * channels * features
            channels = features
        side //= 2
    return total + 2 * (side * side * channels * model.dense + model.dense * model.classes)


def tasks_of(suite: str, name: str, few: bool) -> dict[str, Task]:
    """The tasks of a suite for a network; of few steps and images if wanted."""
    model, shape, batch = NETWORKS[name]
    one = forward_flops(model, shape)

    def attack(norm: str, steps: int) -> dict[str, Task]:
        # Forward, and backward to the image.
        return {f"{norm}, PGD-{steps}": Task(("attack", norm, steps), batch, batch * steps * 2 * one)}

    def train(attack_steps: int, steps: int) -> dict[str, Task]:
        named = f"PGD-{attack_steps} training" if attack_steps else "standard training"
        flops = batch * steps * (2 * attack_steps + 3) * one
        return {named: Task(("train", attack_steps, steps), batch * steps, flops)}

    def retrain() -> dict[str, Task]:
        replicas, steps = STACKS[name]
        steps = 1 if few else steps
        images = RETRAINING_BATCH * steps * replicas
        return {f"stack of {replicas}": Task(("retrain", replicas, steps), images, images * 3 * one)}

    short, long = (1, 2) if few else (10, 40)
    match suite:
        case "loops":
            return attack("l2", 2) | train(1, 2)
        case "attack":
            return {k: v for norm in RADII for steps in (short, long) for k, v in attack(norm, steps).items()}
        case "train":
            steps = 1 if few else 20 if name == "digits" else 2
            return train(0, 5 * steps) | train(short, steps) | train(long, steps)
        case "retrain":
            return retrain()
        case "devices":
            return attack("l2", long) | (retrain() if name == "digits" else {})
        case "attributions":
            if name not in ATTRIBUTED:
                return {}
            count = 5 if few else ATTRIBUTED[name]
            return {task: Task((task,), count, math.nan) for task in ATTRIBUTIONS}
        case "gradients":
            tasks = {"input gradients": Task(("input gradients",), batch, batch * 2 * one)}
            if name in ALIGNED:
                tasks["alignment"] = Task(("alignment",), 20 if few else ALIGNED[name], math.nan)
            return tasks
    steps = 1 if few else 5
    return {} if name == "cifar" else {"VAE-GAN step": Task(("vae_gan", steps), batch * steps, math.nan)}


def write(file: Path, suite: str, name: str, tasks: Mapping[str, Task], precision: str) -> None:
    """Writes what all contenders of a suite and network start from."""
    model, shape, batch = NETWORKS[name]
    batch = RETRAINING_BATCH if suite == "retrain" else batch
    replicas, _ = STACKS[name]
    generator, pixels = np.random.default_rng(0), shape[0] * shape[1]
    init = jax.vmap(lambda key: networks.init(model, key, shape)["params"])
    arrays = named(init(jax.random.split(jax.random.key(0), replicas)))
    arrays["images"] = generator.uniform(-1, 1, (batch, *shape)).astype(np.float32)
    arrays["labels"] = (np.arange(batch) % 10).astype(np.int32)
    arrays["ranks"] = np.stack([generator.permutation(pixels).reshape(shape[:2]) for _ in range(batch)]).astype(
        np.int32
    )
    arrays["thresholds"] = np.linspace(0.1, 0.9, replicas) * pixels // 1
    spec: dict[str, Any] = {"stages": model.stages, "window": model.window, "dense": model.dense, "image_shape": shape}
    spec |= {"tasks": {task: one.build for task, one in tasks.items()}, "radii": RADII}
    spec["matmul_precision"] = precision
    if suite == "attributions" and tasks:
        count = next(iter(tasks.values())).images
        arrays["many_images"] = generator.uniform(-1, 1, (count, *shape)).astype(np.float32)
        arrays["removed"] = generator.random((count, *shape[:2])) < 0.5
    if "alignment" in tasks:
        manifold = manifolds.vae_gan_for(shape)
        variables = manifolds.init_vae_gan(manifold, shape, jax.random.key(1)).variables
        arrays |= named({part: variables[part] for part in ("encoder", "decoder")}, "manifold/")
        many = tasks["alignment"].images
        arrays["many_images"] = generator.uniform(-1, 1, (many, *shape)).astype(np.float32)
        layers = [(layer.stride, 1 if layer.padding == "SAME" else 0) for layer in decoder_layers(manifold)]
        encoder_layers = len(manifold.encoder.features)
        spec["decoder"] = {"base": manifold.decoder.base, "layers": layers, "encoder_layers": encoder_layers}
    np.savez(file, allow_pickle=False, spec=json.dumps(spec), **arrays)


def named(tree, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {prefix + jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def decoder_layers(manifold: manifolds.VaeGan) -> list[manifolds.generators.Layer]:
    """Its transposed convolutions."""
    return [*manifold.decoder.hidden, manifold.decoder.last]
