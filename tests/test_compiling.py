"""Barriers behind convolutions: nowhere is one missing, and no value changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

from robgrad import compiling, stacking
from robgrad.networks import layers

NAMES = ("NHWC", "HWIO", "NHWC")
images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 8)), jnp.float32)
kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 8, 8)) / 9, jnp.float32)


def plain(images, kernel):
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=NAMES)


def looped(images, kernel):
    return lax.fori_loop(0, 3, lambda _, images: jnp.tanh(plain(images, kernel)), images)


def scanned(images, kernel):
    return lax.scan(lambda images, _: (plain(images, kernel), images.sum()), images, None, length=2)


def branched(images, kernel):
    return lax.cond(images.sum() > 0, plain, lambda images, kernel: plain(-images, kernel), images, kernel)


def of_parts(images, kernel):
    """Both derivatives of our own layer, through a program within a program, mapped over two kernels."""
    loss = lambda images, kernel: jnp.sum(jax.jit(layers.conv)(images, kernel) ** 2)  # noqa: E731
    return jax.vmap(jax.grad(loss, argnums=(0, 1)), (None, 0))(images, jnp.stack([kernel, -2 * kernel]))


def remembered(images, kernel):
    return jax.checkpoint(lambda images: plain(jnp.sin(images), kernel))(images)


def convolutions(program):
    """For each convolution, at any depth, whether a barrier alone takes what it gives."""
    takers = {}
    for operation in program.eqns:
        for variable in operation.invars:
            if isinstance(variable, core.Var):
                takers.setdefault(variable, []).append(operation.primitive)
    for operation in program.eqns:
        if operation.primitive is lax.conv_general_dilated_p:
            (given,) = operation.outvars
            yield takers.get(given, []) == [lax.optimization_barrier_p] and given not in program.outvars
        for value in jax.tree.leaves(list(operation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(value, "eqns"):
                yield from convolutions(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("function", [plain, looped, scanned, branched, of_parts, remembered])
def test_a_barrier_is_behind_every_convolution(function):
    kept = list(convolutions(jax.make_jaxpr(function)(images, kernel).jaxpr))
    barred = list(convolutions(jax.make_jaxpr(compiling.barred(function))(images, kernel).jaxpr))
    assert kept
    assert not any(kept)
    assert len(barred) == len(kept)
    assert all(barred)
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6),
        jax.jit(compiling.barred(function))(images, kernel),
        jax.jit(function)(images, kernel),
    )


def test_static_arguments_and_programs_without_convolutions_pass_through():
    power = compiling.barred(lambda name, tree, times: {name: tree["x"] ** times, "none": None}, static=(0, 2))
    found = jax.jit(power, static_argnums=(0, 2))("y", {"x": jnp.arange(3.0)}, 2)
    np.testing.assert_array_equal(found["y"], [0.0, 1.0, 4.0])
    assert found["none"] is None
    assert jax.jit(compiling.barred(lambda x, times: x * times, static=1), static_argnums=1)(2.0, 3) == 6


def test_what_cannot_be_kept_on_disk_is_for_programs_that_last(monkeypatch):
    """With JAX's cache on disk only those that last are traced for barriers; without it, all are."""
    barred = []
    monkeypatch.setattr(compiling, "convolutions", lambda: "oneDNN")
    monkeypatch.setattr(compiling, "barred", lambda function, static: barred.append(function) or function)
    for cache, lasting, wanted in ((None, False, 1), ("/cache", False, 0), ("/cache", True, 1)):
        barred.clear()
        monkeypatch.setattr(compiling, "_kept_on_disk", lambda cache=cache: cache is not None)
        compiling.compiled(plain, None, lasting=lasting)
        assert len(barred) == wanted, (cache, lasting)


def test_what_a_user_says_of_onednn_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=false")
    assert compiling.convolutions.__wrapped__() == "XLA"


def test_where_a_user_asks_for_onednn_every_program_has_barriers(monkeypatch):
    """Else a program that JAX's cache may keep would have its convolutions merged with what follows."""
    barred = []
    monkeypatch.setattr(compiling, "convolutions", lambda: "oneDNN")
    monkeypatch.setattr(compiling, "barred", lambda function, static: barred.append(function) or function)
    monkeypatch.setattr(compiling, "_kept_on_disk", lambda: True)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=true")
    compiling.compiled(plain, None)
    assert barred == [plain]


def test_what_is_found_does_not_depend_on_where_it_is_asked_first():
    """Within a trace, and with products in bfloat16."""
    wanted, found = compiling.convolutions.__wrapped__(), []
    jax.jit(lambda x: found.append(compiling.convolutions.__wrapped__()) or x)(1.0)
    with jax.default_matmul_precision("bfloat16"):
        found.append(compiling.convolutions.__wrapped__())
    assert found == [wanted, wanted]


def test_a_stack_in_a_loop_has_onednns_convolutions():
    """Replicas that run in turn on a core, each a loop of gradient steps on a network with two convolutions."""
    if compiling.convolutions() != "oneDNN":
        pytest.skip("oneDNN's convolutions are not in reach of this jaxlib, or not right on this processor")
    mesh = stacking.device_mesh(2, 2, jax.devices()[:1])
    loss = lambda images, kernel: jnp.sum(layers.conv(jax.nn.silu(layers.conv(images, kernel)), kernel))  # noqa: E731

    def steps(kernel, images):
        return lax.fori_loop(0, 3, lambda _, images: images - 0.1 * jax.grad(loss)(images, kernel), images)

    program = compiling.compiled(stacking.per_replica(steps, mesh), mesh)
    text = program.lower(jnp.stack([kernel, kernel]), images).compile().as_text()
    assert text.count('custom_call_target="__onednn$convolution') == 3
    assert " convolution(" not in text
