"""What a stranger writes: networks from three libraries; how robust, how aligned, how faithful."""

import sys

import equinox
import jax
import jax.numpy as jnp
import torch
from flax import nnx

import robgrad
from robgrad import attacks, data, faithfulness, gradients, manifolds, networks, stacking, training

epochs, count = map(int, sys.argv[1:])
digits = data.load("digits")
images, labels = data.scale(digits.test.images[:count]), digits.test.labels[:count]


def trained(network):
    step = training.classifier_step(network, attacks.pgd("l2", attacks.cross_entropy, steps=5))
    start = stacking.stack([training.init_classifier(network, (8, 8, 1), jax.random.key(0))])
    options = {"mesh": stacking.device_mesh(1, 50), "batch_size": 50, "epochs": epochs, "progress": print}
    end = training.fit(step, start, training.StepSizes(epsilon=0.5, step_size=0.25), digits.train, **options)
    return networks.logits_fn(network, stacking.replica(end.variables, 0))


def flat(images):
    return images.reshape(len(images), -1)


in_nnx = networks.of_nnx(lambda rngs: nnx.Sequential(flat, nnx.Linear(64, 10, rngs=rngs)))
line = equinox.nn.Lambda(lambda image: image.ravel())
in_equinox = networks.of_equinox(lambda key: equinox.nn.Sequential([line, equinox.nn.MLP(64, 10, 32, 1, key=key)]))
module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
weight, bias = (jnp.asarray(parameter.detach().numpy()) for parameter in module.parameters())
every = {
    "NNX": trained(in_nnx),
    "Equinox": trained(in_equinox),
    "PyTorch": lambda images: flat(images) @ weight.T + bias,
}

plane = manifolds.pca(manifolds.fit_pca(digits.train.images, dimensions=10))
for name, network in every.items():
    robust = robgrad.robust_accuracy(network, images, labels, norm="l2", epsilon=0.5, version="short")
    aligned = gradients.analyser(network, plane)(images, labels)
    print(name, robust.standing["clean"] / count, robust.accuracy, aligned.tangent_fraction.mean(), sep=": ")
own = {"classes": 10, "seeds": 2, "epochs": epochs, "progress": print}
curve = faithfulness.roar(every["NNX"], gradients.gradient, digits.train, digits.test, **own, model=in_equinox)
curve.plot().figure.savefig("roar.png")
