"""The same work in PyTorch, for `experiments.benchmark`: run as a process of its own, on arrays from a file.

    python -m experiments.peers FILE VARIANT

`FILE` is an `.npz` that the benchmark writes: images in [-1, 1], labels, rank maps, thresholds, and the initial
parameters of each replica under their linen names. Prints one line of JSON: the last losses and the
seconds of each repeat.
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

VARIANTS = ("eager", "channels_last", "func_stack")


def network(stages, window: int, dense: int, image_shape, classes: int = 10):
    """`models.CNN` in PyTorch, NCHW."""
    from torch import nn

    (side, _, channels), layers = image_shape, []
    for stage in stages:
        for fan_in, fan_out in pairwise((channels, *stage)):
            layers += [nn.Conv2d(fan_in, fan_out, window, padding=window // 2), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, side = stage[-1], side // 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(side**2 * channels, dense), nn.ReLU(), nn.Linear(dense, classes)
    )


def weights(arrays, replica: int, stages, side: int):
    """Our parameters of one replica in the order of `network`, kernels and flattened features as NCHW."""
    import torch

    count, last = sum(map(len, stages)), stages[-1][-1]
    for index in range(count):
        yield torch.tensor(arrays[f"Conv_{index}/kernel"][replica].transpose(3, 2, 0, 1).copy())
        yield torch.tensor(arrays[f"Conv_{index}/bias"][replica])
    first = arrays["MLP_0/Dense_0/kernel"][replica]
    side //= 2 ** len(stages)
    first = first.reshape(side, side, last, -1).transpose(2, 0, 1, 3).reshape(first.shape)
    yield torch.tensor(first.T.copy())
    yield torch.tensor(arrays["MLP_0/Dense_0/bias"][replica])
    yield torch.tensor(arrays["MLP_0/Dense_1/kernel"][replica].T.copy())
    yield torch.tensor(arrays["MLP_0/Dense_1/bias"][replica])


def occluded(images, ranks, threshold):
    """ROAR's occlusion with colour 0."""
    return images * (ranks[:, None] >= threshold)


def one_after_another(arrays, spec, channels_last: bool) -> Callable[[], list[float]]:
    """Each replica's steps in turn, eagerly."""
    import torch
    from torch.nn.functional import cross_entropy

    images, labels, ranks = (torch.tensor(arrays[name]) for name in ("images", "labels", "ranks"))
    images = images.permute(0, 3, 1, 2).contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format

    model = network(**spec).to(memory_format=layout)
    thresholds = arrays["thresholds"].tolist()
    starts = [list(weights(arrays, replica, spec["stages"], images.shape[-1])) for replica in range(len(thresholds))]

    def run() -> list[float]:
        last = []
        for start, threshold in zip(starts, thresholds, strict=True):
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), start, strict=True):
                    parameter.copy_(value)
            optimizer = torch.optim.Adam(model.parameters(), 1e-3)
            for _ in range(int(arrays["steps"])):
                optimizer.zero_grad(set_to_none=True)
                batch = occluded(images, ranks, threshold).contiguous(memory_format=layout)
                loss = cross_entropy(model(batch), labels)
                loss.backward()
                optimizer.step()
            last.append(loss.item())
        return last

    return run


def func_stack(arrays, spec) -> Callable[[], list[float]]:
    """All replicas at once by `torch.func`, with Adam written out on the stack."""
    import torch
    from torch.nn.functional import cross_entropy

    images, labels, ranks = (torch.tensor(arrays[name]) for name in ("images", "labels", "ranks"))
    images = images.permute(0, 3, 1, 2).contiguous()
    model, thresholds = network(**spec), torch.tensor(arrays["thresholds"])
    names = [name for name, _ in model.named_parameters()]
    each = [list(weights(arrays, replica, spec["stages"], images.shape[-1])) for replica in range(len(thresholds))]

    def loss(parameters, threshold):
        return cross_entropy(
            torch.func.functional_call(model, parameters, (occluded(images, ranks, threshold),)), labels
        )

    step = torch.func.vmap(torch.func.grad_and_value(loss))

    def run() -> list[float]:
        parameters = {name: torch.stack([one[index] for one in each]) for index, name in enumerate(names)}
        first = {name: torch.zeros_like(value) for name, value in parameters.items()}
        second = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for count in range(1, int(arrays["steps"]) + 1):
            gradients, losses = step(parameters, thresholds)
            for name, gradient in gradients.items():
                first[name].mul_(0.9).add_(gradient, alpha=0.1)
                second[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                deviation = (second[name] / (1 - 0.999**count)).sqrt_().add_(1e-8)
                parameters[name].addcdiv_(first[name], deviation, value=-1e-3 / (1 - 0.9**count))
        return losses.tolist()

    return run


def main(file: str, variant: str) -> None:
    """Times one variant on the arrays of a file."""
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    spec = json.loads(str(arrays["spec"]))
    run = (
        func_stack(arrays, spec)
        if variant == "func_stack"
        else one_after_another(arrays, spec, variant == "channels_last")
    )
    losses, seconds = run(), []
    for _ in range(int(arrays["repeats"])):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"losses": losses, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
