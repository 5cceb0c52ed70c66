"""What compiled loops of attack and training steps hold: nothing of a kernel's size is copied or turned in them."""

import importlib.metadata
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import launch
from experiments.harness.settings import options
from robgrad import attacks, networks, stacking, training
from robgrad import data as data_sets
from robgrad.training import loop

NETWORKS = {
    "digits": (networks.digits_cnn(), (8, 8, 1)),
    "mnist": (networks.mnist_cnn(), (28, 28, 1)),
    "cifar": (networks.cifar_cnn(), (32, 32, 3)),
}
FAST = launch.FAST_CPU_FLAGS.get(importlib.metadata.version("jaxlib"), ())
# In no network's shapes, so that what has it is no kernel.
BATCH = 7


def attack_text(network, shape):
    """The compiled loop of an attack on a batch."""
    attack = attacks.pgd("l2", attacks.cross_entropy, 5)
    variables = networks.init(network, jax.random.key(0), shape)

    def run(variables, images, labels):
        own = networks.logits_fn(network, variables)
        each = lambda image, label: attack(jax.random.key(0), own, image, label, jnp.float32(1), jnp.float32(0.1))  # noqa: E731
        return jax.vmap(each)(images, labels)

    given = (variables, jnp.zeros((BATCH, *shape)), jnp.zeros(BATCH, int))
    return jax.jit(run).lower(*given).compile().as_text(), variables


def training_text(network, shape):
    """The compiled segment of adversarial training, a stack of one on one device."""
    step = training.classifier_step(network, attacks.pgd("l2", attacks.cross_entropy, 2))
    states = stacking.stack([training.init_classifier(network, shape, jax.random.key(0))])
    numbers = jax.tree.map(lambda leaf: jnp.full(1, leaf), training.StepSizes(1.0, 0.1))
    mesh = stacking.device_mesh(1, BATCH, jax.devices()[:1])
    data = data_sets.Split(jnp.zeros((2 * BATCH, *shape), jnp.uint8), jnp.zeros(2 * BATCH, int))
    program = loop.segment(mesh, math.prod(shape[:2]))
    lowered = program.lower(step, mesh, (BATCH, 2 * BATCH), "shuffled", False, states, numbers, data, np.int32(3))
    return lowered.compile().as_text(), states.variables


def moved_in_loops(text, kernels):
    """Instructions, outside of the entry, that copy or turn something of a kernel's shape."""
    shapes = {tuple(sorted(one)) for one in kernels}
    for computation in re.split(r"\n(?=ENTRY |%)", text):
        if computation.startswith("ENTRY"):
            continue
        for dims, operation in re.findall(r"= f32\[([\d,]+)\]\S* (copy|transpose)\(", computation):
            if tuple(sorted(map(int, dims.split(",")))) in shapes:
                yield operation, dims


@pytest.mark.parametrize("build", [attack_text, training_text])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_kernel_is_copied_or_turned_in_a_loop(name, build):
    text, variables = build(*NETWORKS[name])
    assert "while(" in text
    # Dense kernels: those of convolutions are turned for the derivative by the image, some tens of kilobytes.
    shapes = [leaf.shape for leaf in jax.tree.leaves(variables) if leaf.ndim < 4]
    kernels = [shape[-2:] for shape in shapes if math.prod(shape) > 10_000]
    assert kernels
    assert list(moved_in_loops(text, kernels)) == []
    assert "all-reduce" not in text, "one device has nothing to sum over"


def test_what_the_test_looks_for_is_found():
    """A loop that turns its matrix in every turn, and sorts its rows."""
    run = jax.jit(lambda matrix: jax.lax.fori_loop(0, 5, lambda _, matrix: jnp.sort(matrix.T, axis=1), matrix))
    text = run.lower(jnp.ones((300, 300))).compile().as_text()
    assert list(moved_in_loops(text, [(300, 300)]))


CONVOLUTIONS = """
import jax, jax.numpy as jnp, numpy as np
from robgrad import compiling, stacking
images = jax.random.normal(jax.random.key(0), (9, 8, 8, 16))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 16, 32))
names = ("NHWC", "HWIO", "NHWC")
run = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=names)
every = [(stacking.device_mesh(2, 9, jax.devices()[:count]), pixels) for count, pixels in ((1, 64), (2, 64), (2, 784))]
programs = [compiling.compiled(run, mesh, pixels=pixels) for mesh, pixels in every]
print(*("ynn" in program.lower(images, kernel).compile().as_text() for program in programs))
one, other, _ = (np.asarray(program(images, kernel)) for program in programs)
np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.skipif(options.cores() != 2, reason="needs two cores: where one device does not keep all of them busy")
@pytest.mark.skipif("convolution" not in str(FAST), reason="no convolutions of one thread are chosen for this jaxlib")
def test_convolutions_of_one_thread_are_for_a_device_a_core():
    """Programs for fewer devices than cores, or of large images, keep XLA's convolutions; both agree to rounding."""
    flags = f"--xla_force_host_platform_device_count=2 {' '.join(FAST)}"
    given = os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    said = subprocess.run([sys.executable, "-c", CONVOLUTIONS], env=given, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True", "False"], said
