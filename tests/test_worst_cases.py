"""The digits networks under AutoAttack: no higher robust accuracy than the worst of what other libraries find."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import peers
from robgrad import attacks, networks, stacking, training
from robgrad import data as data_sets

COUNT = 100
RADII = {"l2": (0.5, 1.0, 2.0), "linf": (0.1, 0.2, 0.4)}
STEP_SIZES = {"l2": 2.0, "linf": 0.1}
SETTINGS = [("l2", 0.5), ("linf", 0.1), ("linf", 0.2)]


@pytest.fixture(scope="module")
def trained(optimised):
    """The networks of section 2.1 on digits at its small size: the variables by name."""
    digits, network, found = data_sets.load("digits"), networks.digits_cnn(), {}
    margin = partial(attacks.cw_margin, bound=500.0)
    kinds = [(norm, loss) for norm in RADII for loss in (attacks.cross_entropy, margin)]
    for norm, loss in [(None, None), *kinds]:
        radii = jnp.array(RADII[norm] if norm else (0.0,))
        attack = attacks.pgd(norm, loss, 10) if norm else attacks.no_attack
        step = training.classifier_step(network, attack)
        start = training.init_classifier(network, (8, 8, 1), jax.random.key(0))
        sizes = training.StepSizes(radii, STEP_SIZES[norm] if norm else 0.0)
        options = {"mesh": stacking.device_mesh(len(radii), 50), "batch_size": 50, "epochs": 15}
        stack = training.fit(step, stacking.stack([start] * len(radii)), sizes, digits.train, **options).variables
        for index, radius in enumerate(radii.tolist()):
            name = f"{norm}-{'xent' if loss is attacks.cross_entropy else 'cw'}-{radius:g}" if norm else "standard"
            found[name] = jax.device_get(stacking.replica(stack, index))
    return network, found


def in_torch(variables):
    """The same network of batches `[N, 1, 8, 8]` in [0, 1]."""
    import torch

    params = variables["params"]
    spec = {"stages": ((16, 32),), "window": 3, "dense": 64, "image_shape": (8, 8, 1)}
    model = peers.network(**spec)
    named = {f"Conv_{i}/{leaf}": params[f"Conv_{i}"][leaf][None] for i in range(2) for leaf in ("kernel", "bias")}
    dense = {
        f"MLP_0/Dense_{i}/{k}": params["MLP_0"][f"Dense_{i}"][k][None] for i in range(2) for k in ("kernel", "bias")
    }
    values = peers.weights({name: np.asarray(leaf) for name, leaf in (named | dense).items()}, 0, spec["stages"], 8)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
    return torch.nn.Sequential(peers.Rescaled(), model).eval().requires_grad_(False)


def worst_of_others(model, images, labels, norm, radius):
    """Which images no attack of torchattacks (at the standard version's budgets) or foolbox breaks."""
    import foolbox
    import torch
    import torchattacks

    kind, standing = {"l2": "L2", "linf": "Linf"}[norm], model(images).argmax(1) == labels
    options = {"eps": radius, "norm": kind, "seed": 0, "steps": 100}
    every = [
        torchattacks.APGD(model, loss="ce", **options),
        torchattacks.APGDT(model, n_classes=10, **options),
        torchattacks.FAB(model, multi_targeted=True, n_classes=10, **options),
        torchattacks.Square(model, eps=radius, norm=kind, seed=0, n_queries=5000),
    ]
    for attack in every:
        if standing.any():
            left = standing.nonzero()[:, 0]
            found = attack(images[left], labels[left])
            standing[left] = model(found).argmax(1) == labels[left]
    built = {"l2": foolbox.attacks.L2PGD, "linf": foolbox.attacks.LinfPGD}[norm](rel_stepsize=0.05, steps=100)
    outside = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    broken = built(outside, images, labels, epsilons=radius)[2]
    return (standing & ~broken).numpy() if isinstance(broken, torch.Tensor) else standing.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "radius"), SETTINGS)
def test_no_other_library_finds_more(trained, norm, radius):
    """13 networks; counts of images, no more of ours than of theirs."""
    import torch

    network, every = trained
    test = data_sets.load("digits").test
    images, labels = test.images[:COUNT], test.labels[:COUNT]
    apply = lambda variables, image: networks.logits_fn(network, variables)(image)  # noqa: E731
    given = torch.tensor(images / np.float32(255)).permute(0, 3, 1, 2), torch.tensor(labels).long()
    said = {}
    for name, variables in every.items():
        ours = attacks.auto_attack(apply, images, labels, variables=variables, norm=norm, epsilon=radius).robust
        theirs = worst_of_others(in_torch(variables), *given, norm, radius / 2)
        said[name] = (int(ours.sum()), int(theirs.sum()))
        print(f"{norm} {radius:g}, {name}: ours {said[name][0]}, others {said[name][1]} of {COUNT}", flush=True)
    assert all(ours <= theirs for ours, theirs in said.values()), said
