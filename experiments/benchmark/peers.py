"""The benchmark's tasks in PyTorch, by itself and by torchattacks, foolbox, ART and Captum.

    python -m experiments.benchmark.peers FILE VARIANT

`FILE` is an `.npz` of work that `experiments.benchmark` writes: images in [-1, 1], labels, rank maps, thresholds, and
the initial parameters of each replica under their linen names.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.benchmark import contest, jacobians
from experiments.harness.settings.options import cores

Arrays = Mapping[str, np.ndarray]


def network(stages, window: int, dense: int, image_shape, classes: int = 10):
    """`models.CNN` in PyTorch, NCHW."""
    (side, _, channels), layers = image_shape, []
    for stage in stages:
        for fan_in, fan_out in pairwise((channels, *stage)):
            layers += [nn.Conv2d(fan_in, fan_out, window, padding=window // 2), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, side = stage[-1], side // 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(side**2 * channels, dense), nn.ReLU(), nn.Linear(dense, classes)
    )


def weights(arrays: Arrays, replica: int, stages, side: int):
    """Our parameters of one replica in the order of `network`, kernels and flattened features as NCHW."""
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


class Work:
    """What a file of work holds, in PyTorch: a network with the first replica's parameters, images and labels."""

    def __init__(self, arrays: Arrays, spec: Mapping[str, Any], variant: str):
        """Reads it for a variant."""
        self.arrays, self.spec, self.variant = arrays, spec, variant
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        layout = torch.channels_last if variant == "channels_last" else torch.contiguous_format
        self.place: dict[str, Any] = {"device": self.device, "memory_format": layout}
        images = torch.tensor(arrays["images"]).permute(0, 3, 1, 2)
        self.images = images.contiguous().to(**self.place)
        self.labels = torch.tensor(arrays["labels"], device=self.device).long()
        self.spec_of_network = {name: spec[name] for name in ("stages", "window", "dense", "image_shape")}
        self.model: Any = network(**self.spec_of_network).to(**self.place)
        self.starts = [
            [leaf.to(self.device) for leaf in weights(arrays, replica, spec["stages"], images.shape[-1])]
            for replica in range(len(arrays["Conv_0/bias"]))
        ]
        self.reset(0)
        self.trained = self.model
        if variant == "compiled":
            self.model = torch.compile(self.model)

    def reset(self, replica: int) -> None:
        """Gives the network a replica's initial parameters."""
        trained = getattr(self, "trained", self.model)
        with torch.no_grad():
            for parameter, value in zip(trained.parameters(), self.starts[replica], strict=True):
                parameter.copy_(value)

    def logits(self, images):
        """The network, in bfloat16 where that is the variant."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.variant == "bfloat16"):
            return self.model(images).float()


def pgd(work: Work, images, labels, norm: str, steps: int):
    """Projected gradient ascent of the cross-entropy, as `robgrad.attacks.pgd`."""
    epsilon, step_size = work.spec["radii"][norm]
    attacked = images
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(work.logits(attacked), labels, reduction="sum"), attacked)
        with torch.no_grad():
            if norm == "l2":
                length = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]
                moved = attacked + step_size * gradient / length - images
                length = moved.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]
                moved = moved * (epsilon / length).clamp_max(1.0)
            else:
                moved = (attacked + step_size * gradient.sign() - images).clamp(-epsilon, epsilon)
            attacked = (images + moved).clamp(-1, 1)
    return attacked.detach()


def attack_task(work: Work, norm: str, steps: int) -> contest.Task:
    """PGD on the images; gives the mean cross-entropy of what comes out."""
    libraries = {"torchattacks": torchattacks, "foolbox": foolbox, "art": art}
    # Some differentiate by all that wants it.
    work.trained.requires_grad_(False)
    if work.variant in libraries:
        attack = libraries[work.variant](work, norm, steps)
    else:
        attack = partial(pgd, work, work.images, work.labels, norm, steps)

    def task() -> list[float]:
        attacked = attack()
        with torch.no_grad():
            return [cross_entropy(work.logits(attacked), work.labels).item()]

    return task


def torchattacks(work: Work, norm: str, steps: int) -> Callable[[], torch.Tensor]:
    """By torchattacks, whose pixels are in [0, 1]."""
    import torchattacks

    model = nn.Sequential(Rescaled(), work.trained).eval()
    epsilon, step_size = (value / 2 for value in work.spec["radii"][norm])
    kinds = {"l2": torchattacks.PGDL2, "linf": torchattacks.PGD}
    attack = kinds[norm](model, eps=epsilon, alpha=step_size, steps=steps, random_start=False)
    images = (work.images + 1) / 2
    return lambda: attack(images, work.labels) * 2 - 1


class Rescaled(nn.Module):
    """Pixels from [0, 1] to [-1, 1]."""

    def forward(self, images):
        """As said."""
        return images * 2 - 1


def foolbox(work: Work, norm: str, steps: int) -> Callable[[], torch.Tensor]:
    """By foolbox."""
    import eagerpy
    import foolbox

    kinds = {"l2": foolbox.attacks.L2PGD, "linf": foolbox.attacks.LinfPGD}
    epsilon, step_size = work.spec["radii"][norm]
    model = foolbox.PyTorchModel(work.trained.eval(), bounds=(-1, 1), device=work.device)
    attack = kinds[norm](abs_stepsize=step_size, steps=steps, random_start=False)
    criterion = foolbox.Misclassification(eagerpy.astensor(work.labels))
    return lambda: attack.run(model, work.images, criterion, epsilon=epsilon)


def art(work: Work, norm: str, steps: int) -> Callable[[], torch.Tensor]:
    """By the Adversarial Robustness Toolbox."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    epsilon, step_size = work.spec["radii"][norm]
    shape = tuple(work.images.shape[1:])
    classifier = PyTorchClassifier(work.trained, nn.CrossEntropyLoss(), shape, 10, clip_values=(-1, 1))
    options = {"norm": 2 if norm == "l2" else np.inf, "eps": epsilon, "eps_step": step_size, "max_iter": steps}
    attack = ProjectedGradientDescentPyTorch(classifier, batch_size=len(work.images), verbose=False, **options)
    images, labels = work.images.cpu().numpy(), work.labels.cpu().numpy()
    return lambda: torch.tensor(attack.generate(images, labels), device=work.device)


def train_task(work: Work, attack_steps: int, steps: int) -> contest.Task:
    """Training steps on one batch, adversarial where there are attack steps; gives the last step's loss."""

    def task() -> list[float]:
        work.reset(0)
        optimizer = torch.optim.Adam(work.trained.parameters(), 1e-3, fused=True)
        loss = torch.zeros(())
        for _ in range(steps):
            attacked = pgd(work, work.images, work.labels, "l2", attack_steps)
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(work.logits(attacked), work.labels)
            loss.backward()
            optimizer.step()
        return [loss.item()]

    return task


def retrain_task(work: Work, replicas: int, steps: int) -> contest.Task:
    """Each replica's ROAR retraining on one batch, in turn or as a `torch.func` stack; gives each one's last loss."""
    ranks = torch.tensor(work.arrays["ranks"], device=work.device)
    if work.variant == "func_stack":
        return func_stack(work, ranks, steps)
    thresholds = work.arrays["thresholds"].tolist()

    def task() -> list[float]:
        last = []
        for replica, threshold in zip(range(replicas), thresholds, strict=True):
            work.reset(replica)
            optimizer = torch.optim.Adam(work.trained.parameters(), 1e-3, fused=True)
            loss = torch.zeros(())
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                loss = cross_entropy(work.logits(occluded(work.images, ranks, threshold)), work.labels)
                loss.backward()
                optimizer.step()
            last.append(loss.item())
        return last

    return task


def occluded(images, ranks, threshold):
    """ROAR's occlusion with colour 0."""
    return images * (ranks[:, None] >= threshold)


def func_stack(work: Work, ranks, steps: int) -> contest.Task:
    """All replicas at once by `torch.func`, with Adam written out on the stack."""
    thresholds = torch.tensor(work.arrays["thresholds"], device=work.device)
    names = [name for name, _ in work.trained.named_parameters()]

    def loss(parameters, threshold):
        images = occluded(work.images, ranks, threshold)
        return cross_entropy(torch.func.functional_call(work.trained, parameters, (images,)), work.labels)

    step = torch.func.vmap(torch.func.grad_and_value(loss))

    def task() -> list[float]:
        parameters = {name: torch.stack([one[index] for one in work.starts]) for index, name in enumerate(names)}
        first = {name: torch.zeros_like(value) for name, value in parameters.items()}
        second = {name: torch.zeros_like(value) for name, value in parameters.items()}
        losses = torch.zeros(len(work.starts))
        for count in range(1, steps + 1):
            gradients, losses = step(parameters, thresholds)
            for name, gradient in gradients.items():
                first[name].mul_(0.9).add_(gradient, alpha=0.1)
                second[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                deviation = (second[name] / (1 - 0.999**count)).sqrt_().add_(1e-8)
                parameters[name].addcdiv_(first[name], deviation, value=-1e-3 / (1 - 0.9**count))
        return losses.tolist()

    return task


def gradient_task(work: Work) -> contest.Task:
    """Input gradients of the loss at the label, by Captum where that is the variant; gives their mean l2 norm."""
    if work.variant == "captum":
        from captum.attr import Saliency

        loss = lambda images: cross_entropy(work.logits(images), work.labels, reduction="none")  # noqa: E731
        saliency = Saliency(loss)
        gradients = lambda: saliency.attribute(work.images.clone().requires_grad_(True), abs=False)  # noqa: E731
    else:

        def gradients():
            images = work.images.detach().requires_grad_(True)
            return torch.autograd.grad(cross_entropy(work.logits(images), work.labels, reduction="sum"), images)[0]

    return lambda: [gradients().flatten(1).norm(dim=1).mean().item()]


def main(file: str, variant: str) -> None:
    """Serves one variant of a file's tasks."""
    torch.set_num_threads(cores())
    arrays, spec = contest.read(file)
    fast = spec["matmul_precision"] == "tensorfloat32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = fast
    work = Work(arrays, spec, variant)
    makers: dict[str, Callable[..., contest.Task]] = {
        "attack": attack_task,
        "train": train_task,
        "retrain": retrain_task,
        "input gradients": gradient_task,
        "alignment": jacobians.alignment_task,
    }
    tasks = spec["tasks"].items()
    contest.serve({name: partial(makers[kind], work, *arguments) for name, (kind, *arguments) in tasks})


if __name__ == "__main__":
    main(*sys.argv[1:])
