"""The layers against lax's own, in value and in derivatives, and in the compiled text of a loop."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from robgrad import networks
from robgrad.networks import layers

LAYOUT = ("NHWC", "HWIO", "NHWC")


def lax_conv(images, kernel, stride, padding):
    return lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


def lax_conv_transpose(images, kernel, stride, padding):
    return lax.conv_transpose(images, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


PAIRS = {"conv": (layers.conv, lax_conv), "conv_transpose": (layers.conv_transpose, lax_conv_transpose)}

shapes = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(1, 9), st.integers(1, 9)),
        "window": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "channels": st.tuples(st.sampled_from([1, 3, 7, 9]), st.sampled_from([1, 4, 5])),
        "stride": st.integers(1, 3),
        "padding": st.sampled_from(["SAME", "VALID"]),
        "name": st.sampled_from(sorted(PAIRS)),
        "seed": st.integers(0, 2**31 - 1),
    }
)


def derivatives(layer, stride, padding):
    """Value, both gradients of a nonlinear function of the layer, and a gradient of their norm."""

    def loss(images, kernel):
        return jnp.sum(jnp.sin(layer(images, kernel, stride, padding)))

    def penalty(images, kernel):
        return sum(jnp.sum(jnp.square(g)) for g in jax.grad(loss, (0, 1))(images, kernel))

    return lambda images, kernel: (
        layer(images, kernel, stride, padding),
        jax.grad(loss, (0, 1))(images, kernel),
        jax.grad(penalty, (0, 1))(images, kernel),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes)
def test_convolutions_equal_lax_in_all_derivatives(case):
    size, window, channels = case["size"], case["window"], case["channels"]
    if case["name"] == "conv" and case["padding"] == "VALID":
        size = tuple(max(s, w) for s, w in zip(size, window, strict=True))
    keys = jax.random.split(jax.random.key(case["seed"]))
    images = jax.random.normal(keys[0], (2, *size, channels[0]))
    kernel = jax.random.normal(keys[1], (*window, *channels))
    ours, theirs = (
        jax.jit(derivatives(layer, case["stride"], case["padding"]))(images, kernel) for layer in PAIRS[case["name"]]
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), ours, theirs)


@pytest.mark.parametrize("shape", [(3, 8, 8, 2), (2, 7, 5, 1)])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool_equals_reduce_window(shape, window, ties):
    images = jax.random.normal(jax.random.key(0), shape)
    images = jnp.round(images) if ties else images
    weights = jax.random.normal(jax.random.key(1), (shape[0], shape[1] // window, shape[2] // window, shape[3]))

    def reduce_window(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, window, window, 1), "VALID")

    def value_and_gradient(pool):
        return jax.value_and_grad(lambda x: jnp.sum(weights * jnp.sin(pool(x))))(images)

    ours, theirs = (value_and_gradient(pool) for pool in (lambda x: layers.max_pool(x, window), reduce_window))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_max_pool_propagates_nan():
    images = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan).at[0, 2, 2, 0].set(jnp.nan)
    np.testing.assert_array_equal(jnp.isnan(layers.max_pool(images))[0, :, :, 0], [[True, False], [False, True]])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the slow path is XLA:CPU's")
@pytest.mark.parametrize("training", [False, True])
def test_loops_contain_no_slow_convolution(training):
    """Every convolution of a compiled loop is dense and in the one layout with a fast kernel."""
    model = networks.CNN(((8, 8), (8,)), 3, 8, 10)
    images = jnp.ones((5, 8, 8, 2))
    params = networks.init(model, jax.random.key(0), images.shape[1:])["params"]

    def loss(params, images):
        return jnp.sum(model.apply({"params": params}, images) ** 2)

    def step(_, carry):
        return jax.tree.map(lambda a, b: a - 0.1 * b, carry, jax.grad(loss, (0, 1) if training else 1)(*carry))

    def images_only(_, images):
        return images - 0.1 * jax.grad(loss, 1)(params, images)

    body, carry = (step, (params, images)) if training else (images_only, images)
    text = jax.jit(lambda carry: lax.fori_loop(0, 3, body, carry)).lower(carry).compile().as_text()
    convolutions = [line for line in text.splitlines() if re.search(r"= \S+ convolution\(", line)]
    assert len(convolutions) >= (6 if training else 4)
    assert all("dim_labels=b01f_01io->b01f" in line for line in convolutions)
    assert not any(re.search(r"(lhs|rhs)_dilate|[^_]stride=", line) for line in convolutions)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere nothing is replaced")
def test_convolutions_of_others_are_the_layers():
    """In any layout: values, derivatives, and under `vmap`."""
    for layout in (LAYOUT, ("NCHW", "OIHW", "NCHW"), ("HWNC", "IOHW", "CNHW")):
        sizes, windows = {"N": 2, "H": 9, "W": 7, "C": 9}, {"O": 5, "I": 9, "H": 3, "W": 3}
        images = jax.random.normal(jax.random.key(1), [sizes[axis] for axis in layout[0]])
        kernel = jax.random.normal(jax.random.key(2), [windows[axis] for axis in layout[1]])
        for stride, pads in ((1, "SAME"), (2, "VALID"), (2, ((1, 2), (0, 1)))):
            options = {"window_strides": (stride, stride), "padding": pads, "dimension_numbers": layout}
            theirs = jax.jit(partial(lax.conv_general_dilated, **options))
            ours = networks.with_fast_convolutions(theirs)
            assert "custom_vjp" in str(jax.make_jaxpr(ours)(images, kernel))
            both = [
                [
                    function(images, kernel),
                    *jax.grad(lambda *at, of=function: jnp.sum(jnp.sin(of(*at))), (0, 1))(images, kernel),
                ]
                for function in (ours, theirs)
            ]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *both)
            mapped = jax.vmap(ours, (0, None))(images[None], kernel)[0]
            np.testing.assert_allclose(mapped, both[1][0], rtol=1e-4, atol=1e-4)


class Others(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        images = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(images)))
        return nn.Dense(3)(nn.relu(nn.Conv(8, (3, 3), 2)(images)).mean((1, 2)))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere nothing is replaced")
def test_modules_of_others_are_fast():
    """The logits of a module of Flax are its own, and a loop of its gradients contains no slow convolution."""
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 2))
    variables = networks.init(Others(), jax.random.key(1), images.shape[1:])
    np.testing.assert_allclose(
        networks.logits(Others(), variables, images), Others().apply(variables, images), rtol=1e-5, atol=1e-5
    )
    slope = jax.grad(lambda x: jnp.sum(networks.logits(Others(), variables, x) ** 2))
    text = jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, x: x + slope(x), x)).lower(images).compile().as_text()
    convolutions = [line for line in text.splitlines() if re.search(r"= \S+ convolution\(", line)]
    assert convolutions
    assert all("dim_labels=b01f_01io->b01f" in line and "hs_dilate" not in line for line in convolutions)
