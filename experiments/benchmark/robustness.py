"""The benchmark's suite of robust accuracy: standard AutoAttack by robgrad, the original's code and torchattacks.

    python -m experiments.benchmark.robustness FILE VARIANT

`FILE` is an `.npz` of work: a trained network as a list of layers, images in [0, 1] and labels. Networks are one for
digits, trained here, and a public one for MNIST from a folder of the user's. A task runs the whole evaluation and gives
clean and robust accuracy; what compiles or loads is run on a few images beforehand.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import contest
from experiments.harness.settings.options import cores
from robgrad import attacks, data, networks, stacking, training

Arrays = Mapping[str, np.ndarray]
EPSILONS = {"digits": 0.1, "witness": 0.3}
WITNESS_FILE = "mnist-fgsm.npz"
# Images that compile everything at the batch's full size in robgrad; the others compile nothing.
WARM_UP = {"robgrad": 100}


def write(file: Path, name: str, witness: str, few: bool) -> int:
    """Writes the work of a network; returns how many images there are."""
    arrays, layers = _digits(few) if name == "digits" else _witness(Path(witness))
    count = 4 if few else len(arrays["images"])
    arrays |= {field: arrays[field][:count] for field in ("images", "labels")}
    # Where few are wanted, a ball so large that the first attack breaks them all.
    epsilon = 0.9 if few else EPSILONS[name]
    spec = {"layers": layers, "epsilon": epsilon, "tasks": ["AutoAttack, l-inf"]}
    np.savez(file, allow_pickle=False, spec=json.dumps(spec), **arrays)
    return count


def _digits(few: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    """The network for digits, trained at l-inf 0.2 in [-1, 1], and the test images."""
    digits, network = data.load("digits"), networks.digits_cnn()
    step = training.classifier_step(network, attacks.pgd("linf", attacks.cross_entropy, 10))
    start = stacking.stack([training.init_classifier(network, (8, 8, 1), jax.random.key(0))])
    sizes = training.StepSizes(jnp.array([0.2]), jnp.array([0.1]))
    options: dict[str, Any] = {"mesh": stacking.device_mesh(1, 50), "batch_size": 50, "epochs": 1 if few else 15}
    params = stacking.replica(training.fit(step, start, sizes, digits.train, **options).variables, 0)["params"]
    kernels = [params["Conv_0"], params["Conv_1"], *params["MLP_0"].values()]
    arrays = {"images": (digits.test.images / np.float32(255)), "labels": digits.test.labels}
    arrays |= {f"{i}/{field}": np.asarray(one[field]) for i, one in enumerate(kernels) for field in ("kernel", "bias")}
    return arrays, ["centre", "conv 1", "conv 1", "pool", "dense", "dense"]


def _witness(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The public network, its arrays turned from PyTorch's layouts, and MNIST's first 1,000 test images."""
    stored, mnist = dict(np.load(folder / WITNESS_FILE)), data.load("mnist").test
    arrays = {"images": mnist.images[:1000] / np.float32(255), "labels": mnist.labels[:1000]}
    for index, name in enumerate(("0", "2", "5", "7")):
        kernel = stored[f"{name}.weight"]
        kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
        arrays |= {f"{index}/kernel": kernel, f"{index}/bias": stored[f"{name}.bias"]}
    # Flattened channel first there, last here.
    first = arrays["2/kernel"]
    arrays["2/kernel"] = first.reshape(32, 7, 7, -1).transpose(1, 2, 0, 3).reshape(first.shape)
    return arrays, ["conv 2", "conv 2", "dense", "dense"]


def in_jax(layers: Sequence[str], arrays: Arrays) -> networks.LogitsFn:
    """The network of one image in JAX."""

    def logits_fn(image: jax.Array) -> jax.Array:
        x, index = image[None], 0
        for layer in layers:
            kind, _, stride = layer.partition(" ")
            if kind == "centre":
                x = 2 * x - 1
            elif kind == "pool":
                x = networks.layers.max_pool(x)
            else:
                kernel, bias = (jnp.asarray(arrays[f"{index}/{field}"]) for field in ("kernel", "bias"))
                x = networks.layers.conv(x, kernel, int(stride)) if kind == "conv" else x.reshape(1, -1) @ kernel
                x, index = x + bias, index + 1
                x = x if f"{index}/kernel" not in arrays else jax.nn.relu(x)
        return x[0]

    return logits_fn


def in_torch(layers: Sequence[str], arrays: Arrays):
    """The same in PyTorch, of batches `[B, C, H, W]`."""
    import torch
    from torch import nn

    from experiments.benchmark.peers import Rescaled

    modules: list[nn.Module] = []
    index, channels = 0, 1
    for layer in layers:
        kind, _, stride = layer.partition(" ")
        if kind == "centre":
            modules.append(Rescaled())
        elif kind == "pool":
            modules.append(nn.MaxPool2d(2))
        else:
            kernel, bias = arrays[f"{index}/kernel"], torch.tensor(arrays[f"{index}/bias"])
            if kind == "conv":
                channels = kernel.shape[-1]
                pad = (len(kernel) - 1) // 2
                one: Any = nn.Conv2d(kernel.shape[2], channels, len(kernel), int(stride), pad)
                kernel = kernel.transpose(3, 2, 0, 1)
            else:
                if index and arrays[f"{index - 1}/kernel"].ndim == 4:
                    modules.append(nn.Flatten())
                    side = round((len(kernel) / channels) ** 0.5)
                    kernel = kernel.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
                one, kernel = nn.Linear(*kernel.shape), kernel.T
            with torch.no_grad():
                one.weight.copy_(torch.tensor(kernel.copy()))
                one.bias.copy_(bias)
            index += 1
            modules += [one, nn.ReLU()] if f"{index}/kernel" in arrays else [one]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return nn.Sequential(*modules).eval().requires_grad_(False).to(device)


def by_robgrad(arrays: Arrays, spec: Mapping[str, Any]) -> Callable[[int], list[float]]:
    """Clean and robust accuracy of the first images."""
    logits_fn = in_jax(spec["layers"], arrays)

    def evaluate(count: int) -> list[float]:
        images, labels = arrays["images"][:count], arrays["labels"][:count]
        options: dict[str, Any] = {"norm": "linf", "epsilon": spec["epsilon"], "pixel_range": (0.0, 1.0)}
        found = attacks.auto_attack(logits_fn, images, labels, **options)
        return [found.standing["clean"] / count, found.accuracy]

    return evaluate


def by_torch(library: str, arrays: Arrays, spec: Mapping[str, Any]) -> Callable[[int], list[float]]:
    """The same by a library of PyTorch."""
    import torch

    torch.set_num_threads(cores())
    model = in_torch(spec["layers"], arrays)
    device = next(model.parameters()).device
    images = torch.tensor(arrays["images"]).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.tensor(arrays["labels"], device=device).long()

    def attack(some, classes):
        if library == "torchattacks":
            return _torchattacks(model, spec["epsilon"])(some, classes)
        from pyautoattack import AutoAttack

        adversary = AutoAttack(model, norm="Linf", eps=spec["epsilon"], seed=0, device=device)
        adversary.verbose = False
        return adversary.run_standard_evaluation(some, classes, batch_size=250)[0]

    def evaluate(count: int) -> list[float]:
        right = lambda some: (model(some).argmax(1) == labels[:count]).float().mean().item()  # noqa: E731
        return [right(images[:count]), right(attack(images[:count], labels[:count]))]

    return evaluate


def _torchattacks(model, epsilon: float):
    """The standard version of torchattacks' parts: its own takes 10 steps where the standard version has 100."""
    import torchattacks

    options = {"eps": epsilon, "norm": "Linf", "seed": 0, "steps": 100}
    parts = [
        torchattacks.APGD(model, loss="ce", **options),
        torchattacks.APGDT(model, n_classes=10, **options),
        torchattacks.FAB(model, multi_targeted=True, n_classes=10, **options),
        torchattacks.Square(model, eps=epsilon, norm="Linf", seed=0, n_queries=5000),
    ]
    return torchattacks.MultiAttack(parts)


def main(file: str, variant: str) -> None:
    """Serves one variant."""
    arrays, spec = contest.read(file)
    count = len(arrays["labels"])
    jax.config.update("jax_enable_compilation_cache", False)

    def build() -> contest.Task:
        evaluate = by_robgrad(arrays, spec) if variant == "robgrad" else by_torch(variant, arrays, spec)
        evaluate(min(WARM_UP.get(variant, 8), count))
        return partial(evaluate, count)

    contest.serve({task: build for task in spec["tasks"]}, long=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
