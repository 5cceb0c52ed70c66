"""What XLA is told before JAX starts: numbers that jaxlib 0.10.2 gets wrong by default are right with robgrad."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.harness.launch import FAST_CPU_FLAGS
from robgrad import backend

ROOT = Path(__file__).parent.parent
# jax-ml/jax issue 39103, after its report: the last row of a mapped sum of squares, in both precisions.
REPRODUCER = """
import {first}
import jax
import jax.numpy as jnp

{started}
import robgrad

jax.config.update("jax_enable_x64", True)
for dtype, rows in ((jnp.float64, 16_385), (jnp.float32, 32_769)):
    places = jnp.arange(rows, dtype=dtype)
    points = jnp.stack((places, 0 * places, 0 * places), axis=1)
    matrix = jnp.eye(3, dtype=dtype)
    sums = jax.jit(jax.vmap(lambda point: jnp.sum((matrix @ point) ** 2)))(points)
    assert float(sums[-1]) == (rows - 1) ** 2, f"{{dtype.__name__}}: {{sums[-1]}} for {{(rows - 1) ** 2}}"
"""


# Gradients of a small network of convolutions, in single precision against double: with jaxlib 0.12.0.1 and oneDNN's
# convolutions they are off by up to 140% without barriers, though the network's outputs are right.
GRADIENTS = """
import robgrad
import jax
import jax.numpy as jnp
import numpy as np
from robgrad import compiling, manifolds

jax.config.update("jax_enable_x64", True)
model = manifolds.Denoiser()
generator = np.random.default_rng(0)
shapes = manifolds.init_denoiser(model, (16, 16, 1), jax.random.key(0)).variables
values = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape) / 10, shapes)
images, noise = generator.normal(size=(50, 16, 16, 1)), np.full(50, 0.3)
found = []
for dtype in (jnp.float32, jnp.float64):
    variables, clean, level = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (values, images, noise))
    loss = lambda variables: jnp.mean((model.apply(variables, clean, level) - clean) ** 2)
    found.append(compiling.compiled(jax.grad(loss), None)(variables))
off = jax.tree.map(lambda one, two: float(jnp.abs(one - two).max() / jnp.abs(two).max()), *found)
assert max(jax.tree.leaves(off)) < 1e-3, off
print(compiling.in_force())
"""


def run(python, first="robgrad", started="", code=REPRODUCER, **variables):
    given = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = given | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false", "JAX_PLATFORMS": "cpu"} | variables
    if code is REPRODUCER:
        code = code.format(first=first, started=started)
    return subprocess.run([python, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


def pythons():
    """The interpreter of the tests, and others with another JAX where `ROBGRAD_PYTHONS` names some."""
    return [sys.executable, *filter(None, os.environ.get("ROBGRAD_PYTHONS", "").split(os.pathsep))]


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("first", ["robgrad", "jax"])
def test_known_wrong_numbers_are_right(python, first):
    """Whichever is imported first, as long as nothing is computed before."""
    done = run(python, first)
    assert done.returncode == 0, done.stderr


def test_the_flags_of_programs_are_right():
    """Those that programs set for this release, before they are allowed to."""
    flags = " ".join(FAST_CPU_FLAGS.get(backend._release(), ()))
    for code in (REPRODUCER, GRADIENTS):
        done = run(sys.executable, code=code, XLA_FLAGS=flags)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("python", pythons())
def test_compiled_gradients_are_right_whoever_computes_convolutions(python):
    done = run(python, code=GRADIENTS)
    assert done.returncode == 0, done.stderr
    assert "convolutions" in done.stdout


def test_too_late_is_said_once():
    done = run(sys.executable, "jax", "jax.devices()")
    if backend._release() not in backend.SAFE_FLAGS:
        assert done.returncode == 0
        assert "wrong numbers" not in done.stderr
    else:
        assert done.stderr.count("gives wrong numbers on a CPU") == 1


def test_what_a_user_has_set_stays():
    given = "--xla_cpu_experimental_ynn_fusion_type=dot --xla_dump_to=x"
    assert backend.safe_flags(given, "0.10.2") == given
    assert backend.safe_flags("", "0.12.0") == ""
    assert backend.safe_flags("--a=1", "0.10.2") == f"--a=1 {backend.SAFE_FLAGS['0.10.2']}"
