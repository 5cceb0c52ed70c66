"""Attributions against Captum on the same weights in double precision, closed forms, and what each promises."""

import captum.attr as captum
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule
from scipy import stats
from scipy.stats import spearmanr

from robgrad import attacks, data, gradients, networks, stacking, training
from robgrad.gradients import controls, outputs

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def trained(digits):
    """A small network, trained for a while, here and in PyTorch."""
    network = networks.CNN(((8, 12), (12,)), 3, 24, 10)
    start = stacking.stack([training.init_classifier(network, (8, 8, 1), KEY)])
    step = training.classifier_step(network, attacks.no_attack)
    options = {"mesh": stacking.device_mesh(1, 50), "batch_size": 50, "epochs": 4}
    states = training.fit(step, start, training.StepSizes(), digits.train, **options)
    variables = jax.tree.map(np.asarray, stacking.replica(states.variables, 0))
    return networks.logits_fn(network, variables), in_torch(variables["params"])


def in_torch(params):
    """The same network of batches `[B, C, H, W]`, every ReLU a module of its own."""

    def convolution(name, inputs):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        layer = torch.nn.Conv2d(inputs, len(bias), 3, padding="same")
        layer.weight.data, layer.bias.data = torch.tensor(kernel.transpose(3, 2, 0, 1)), torch.tensor(bias)
        return layer

    def dense(name, order=None):
        kernel, bias = params["MLP_0"][name]["kernel"], params["MLP_0"][name]["bias"]
        layer = torch.nn.Linear(*kernel.shape)
        kernel = kernel if order is None else kernel[order]
        layer.weight.data, layer.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(bias)
        return layer

    # Channels come last here and first there.
    order = np.arange(2 * 2 * 12).reshape(2, 2, 12).transpose(2, 0, 1).ravel()
    relu, pool = torch.nn.ReLU, torch.nn.MaxPool2d
    return torch.nn.Sequential(
        *(convolution("Conv_0", 1), relu(), convolution("Conv_1", 8), relu(), pool(2)),
        *(convolution("Conv_2", 12), relu(), pool(2), torch.nn.Flatten()),
        *(dense("Dense_0", order), relu(), dense("Dense_1")),
    ).double()


@pytest.fixture(scope="module")
def images(digits):
    return np.asarray(data.scale(jnp.asarray(digits.test.images[:6])))


def theirs(model, images, make, **options):
    """What Captum gives for the predicted classes, `[N, H, W]`, one channel."""
    batch = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float64)
    labels = model(batch).argmax(1)
    return make(model).attribute(batch, target=labels, **options).detach().numpy()[:, 0]


def ours(logits_fn, images, attribution):
    return np.stack([attribution(KEY, logits_fn, jnp.asarray(image)) for image in images])


def agree(one, two):
    for a, b in zip(one, two, strict=True):
        assert spearmanr(a.ravel(), b.ravel()).statistic > 0.999
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=5e-4 * np.abs(b).max())


SIGNED = {"output": outputs.logit_of_prediction, "pixels": outputs.signed}


def test_both_networks_are_one(trained, images):
    logits_fn, model = trained
    expected = model(torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float64)).detach().numpy()
    np.testing.assert_allclose(jax.vmap(logits_fn)(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gradient", "gradient_times_input"])
def test_gradients_equal_captums(name, trained, images):
    logits_fn, model = trained
    times = name == "gradient_times_input"
    got = ours(logits_fn, images, gradients.of_gradient(**SIGNED, times_input=times))
    make = captum.InputXGradient if times else captum.Saliency
    agree(got, theirs(model, images, make, **({} if times else {"abs": False})))


def test_gradient_times_input_from_black_is_that_of_pixels_from_zero(trained, images):
    logits_fn, model = trained
    half = torch.nn.Sequential(Rescaled(), model)
    got = ours(logits_fn, images, gradients.of_gradient(**SIGNED, times_input=True, origin=-1.0))
    agree(got, theirs(half, (images + 1) / 2, captum.InputXGradient))


class Rescaled(torch.nn.Module):
    def forward(self, images):
        return 2 * images - 1


@pytest.mark.parametrize("baseline", [0.0, -1.0])
def test_integrated_gradients_equal_captums_and_are_complete(baseline, trained, images):
    logits_fn, model = trained
    attribution = gradients.integrated_gradients(
        baseline, 50, "gauss", pixels=outputs.signed, chunk=7, tolerance=np.inf
    )
    got = ours(logits_fn, images, attribution)
    options = {"n_steps": 50, "method": "gausslegendre", "baselines": baseline}
    agree(got, theirs(model, images, captum.IntegratedGradients, **options))
    many = gradients.integrated_gradients(baseline, 300, "midpoint", pixels=outputs.signed)
    for values, image in zip(ours(logits_fn, images, many), images, strict=True):
        assert gradients.completeness_error(values, logits_fn, jnp.asarray(image), baseline) < 0.01


@pytest.mark.parametrize("rule", ["midpoint", "trapezoid", "gauss"])
def test_every_rule_integrates_a_quadratic(rule):
    """x0^2 + 3 x1 from (1, 1): integrated to (x0^2 - 1, 3 (x1 - 1)); all rules are exact for a linear gradient."""
    logits_fn = lambda x: jnp.stack([x[0, 0, 0] ** 2 + 3 * x[0, 1, 0], 0.0])  # noqa: E731
    image = jnp.array([3.0, 2.0]).reshape(1, 2, 1)
    got = gradients.integrated_gradients(1.0, 5, rule, pixels=outputs.signed)(KEY, logits_fn, image)
    np.testing.assert_allclose(got, [[8.0, 3.0]], rtol=1e-5)
    with pytest.raises(ValueError, match="expected"):
        gradients.integrated_gradients(nodes=1 if rule == "trapezoid" else 0, rule=rule)(KEY, logits_fn, image)


def test_averages_over_noise_and_backgrounds_in_closed_form():
    """A linear network's gradient is w everywhere: variance 0, (x - mean background) w."""
    weights = jnp.arange(1.0, 9.0).reshape(2, 4, 1)
    logits_fn = lambda x: jnp.stack([jnp.sum(weights * x), 0.0])  # noqa: E731
    image, background = jnp.full((2, 4, 1), 0.5), jax.random.normal(KEY, (200, 2, 4, 1))
    plain = {"output": outputs.logit_of_prediction, "pixels": outputs.signed}
    np.testing.assert_allclose(gradients.smoothgrad(**plain)(KEY, logits_fn, image), weights[..., 0], rtol=1e-5)
    squares = gradients.smoothgrad(form="square", **plain)(KEY, logits_fn, image)
    np.testing.assert_allclose(squares, weights[..., 0] ** 2, rtol=1e-5)
    variance = gradients.smoothgrad(form="variance", **plain)(KEY, logits_fn, image)
    np.testing.assert_allclose(variance, 0, atol=1e-4)
    expected = (weights * (image - background.mean(0)))[..., 0]
    for build in (gradients.expected_gradients, gradients.gradient_shap):
        got = build(background, samples=4000, chunk=500, pixels=outputs.signed)(KEY, logits_fn, image)
        np.testing.assert_allclose(got, expected, atol=0.6)
    with pytest.raises(ValueError, match="expected a form of mean, square, variance"):
        gradients.smoothgrad(form="cube")


def test_occlusion_equals_captums(trained, images):
    logits_fn, model = trained
    got = ours(logits_fn, images, gradients.sliding_occlusion(3, pixels=outputs.signed, chunk=11))
    agree(got, theirs(model, images, captum.Occlusion, sliding_window_shapes=(1, 3, 3), baselines=0.0))
    with pytest.raises(ValueError, match="expected a window of 1 to 8 pixels, got 9"):
        gradients.sliding_occlusion(9)(KEY, logits_fn, jnp.asarray(images[0]))


@pytest.mark.parametrize("baseline", [0.0, -1.0])
def test_deep_lift_is_complete_and_equals_captums_without_pooling(baseline, trained, images):
    """With max-pools Captum's values do not sum to the change of the logit, ours do; without them both are one."""
    logits_fn, _ = trained
    for image in jnp.asarray(images):
        values = gradients.deep_lift(baseline, outputs.signed)(KEY, logits_fn, image)
        assert gradients.completeness_error(values, logits_fn, image, baseline) < 1e-3
    dense = networks.MLP((24, 16), 5)
    variables = networks.init(dense, KEY, (8, 8, 1))
    shaken = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape), variables)
    own = networks.logits_fn(dense, shaken)
    linear = [torch.nn.Linear(*leaf["kernel"].shape) for leaf in shaken["params"].values()]
    for layer, leaf in zip(linear, shaken["params"].values(), strict=True):
        layer.weight.data, layer.bias.data = (torch.tensor(np.array(leaf[name]).T) for name in ("kernel", "bias"))
    relus = [torch.nn.ReLU() for _ in linear]
    parts = [part for pair in zip(linear, relus, strict=True) for part in pair][:-1]
    model = torch.nn.Sequential(torch.nn.Flatten(), *parts).double()
    agree(
        ours(own, images, gradients.deep_lift(baseline, outputs.signed)),
        theirs(model, images, captum.DeepLift, baselines=baseline),
    )


@pytest.mark.parametrize(("rule", "layer_rule"), [("epsilon", EpsilonRule), ("z+", Alpha1_Beta0_Rule)])
def test_lrp_equals_captums(rule, layer_rule, trained, images):
    logits_fn, model = trained
    for module in model:
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear | torch.nn.Flatten):
            module.rule = layer_rule(epsilon=1e-6) if rule == "epsilon" else layer_rule(set_bias_to_zero=True)
    # Theirs has positive weights alone, which is the rule where inputs are not negative.
    given = images if rule == "epsilon" else np.abs(images)
    agree(ours(logits_fn, given, gradients.lrp(rule)), theirs(model, given, captum.LRP))


def test_lrp_conserves_the_logit(trained, images):
    """Without biases what pixels get is the logit, by every rule."""
    logits_fn, _ = trained
    bare = jax.tree.map_with_path(
        lambda path, leaf: 0 * leaf if "bias" in jax.tree_util.keystr(path) else leaf, logits_fn.variables
    )
    own = networks.logits_fn(logits_fn.network, bare)
    for rule in ("epsilon", "z+", "composite"):
        for image in images:
            total = gradients.lrp(rule, 1e-9)(KEY, own, jnp.asarray(image)).sum()
            assert float(total) == pytest.approx(float(own(jnp.asarray(image)).max()), rel=2e-2)
    with pytest.raises(ValueError, match="expected a rule of epsilon, z\\+, composite, got 'w2'"):
        gradients.lrp("w2")


def test_guided_backpropagation_equals_captums(trained, images):
    logits_fn, model = trained
    agree(
        ours(logits_fn, images, gradients.guided_backpropagation(outputs.signed)),
        theirs(model, images, captum.GuidedBackprop),
    )


def test_grad_cam_equals_captums(trained, images):
    logits_fn, model = trained

    def make(model):
        return captum.LayerGradCam(model, model[6])

    small = theirs(model, images, make, relu_attributions=True)
    expected = torch.nn.functional.interpolate(torch.tensor(small)[:, None], (8, 8), mode="bilinear").numpy()[:, 0]
    got = ours(logits_fn, images, gradients.grad_cam())
    for one, two in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3 * max(two.max(), 1e-3))
    own = networks.logits_fn(networks.MLP((4,), 3), networks.init(networks.MLP((4,), 3), KEY, (4, 4, 1)))
    with pytest.raises(ValueError, match="expected a network with convolutions"):
        gradients.grad_cam()(KEY, own, jnp.zeros((4, 4, 1)))


@pytest.mark.parametrize("name", gradients.ATTRIBUTIONS)
def test_every_attribution_plays_its_role(name, trained, images):
    """A map of the image, finite, the same for one key, under `vmap` as by itself."""
    logits_fn, _ = trained
    attribution = gradients.ATTRIBUTIONS[name]
    one = attribution(KEY, logits_fn, jnp.asarray(images[0]))
    assert one.shape == (8, 8)
    assert np.isfinite(one).all()
    assert np.ptp(one) > 0
    keys = jnp.stack([KEY, jax.random.key(1)])
    both = jax.jit(jax.vmap(lambda key, image: attribution(key, logits_fn, image)))(keys, images[:2])
    np.testing.assert_allclose(both[0], one, rtol=1e-3, atol=1e-4 * np.abs(one).max())
    if name in gradients.PIXELS:
        made = gradients.PIXELS[name](gradients.SIGNED[name](KEY, logits_fn, jnp.asarray(images[0])))
        np.testing.assert_allclose(made, one, rtol=1e-4, atol=1e-6 * np.abs(one).max())


def test_controls():
    noise = jax.random.normal(KEY, (40, 40))
    assert controls.smoothness(noise) == pytest.approx(0, abs=0.1)
    assert controls.smoothness(controls.blur(noise, 2.0)) > 0.8
    assert controls.smoothness(jnp.arange(40.0)[:, None] * jnp.ones(40)) > 0.9
    assert np.isnan(controls.smoothness(jnp.ones((4, 4))))
    np.testing.assert_allclose(controls.blur(jnp.ones((5, 6)), 1.3), 1, rtol=1e-6)
    # A step of height 1 from left to right: Sobel's filter gives 4 on both sides of it.
    image = jnp.zeros((6, 6, 1)).at[:, 3:].set(1.0)
    logits_fn = lambda x: jnp.stack([x.sum(), 0.0])  # noqa: E731
    np.testing.assert_allclose(controls.edges(KEY, logits_fn, image)[2], [0, 0, 4, 4, 0, 0], atol=1e-6)
    other = lambda x: jnp.stack([x[0].sum(), 0.0])  # noqa: E731
    got = controls.of_network(gradients.of_gradient(outputs.logit_of_prediction), other)(KEY, logits_fn, image)
    np.testing.assert_array_equal(got, jnp.zeros((6, 6)).at[0].set(1.0))
    elsewhere = controls.of_another_image(
        gradients.of_gradient(times_input=True, **SIGNED), jnp.full((3, 6, 6, 1), 0.5)
    )
    np.testing.assert_allclose(elsewhere(KEY, logits_fn, image), 0.5)


def test_any_attribution_is_smoothed():
    """Of a quadratic network the mean of |2 w (x + e)| is that of a folded normal; without noise it is the map."""
    weights = jnp.array([[1.0, 0.5], [2.0, 0.1]])
    logits_fn = lambda x: jnp.stack([jnp.sum(weights * x[..., 0] ** 2), -1e9])  # noqa: E731
    image = jnp.array([[0.3, -0.2], [0.0, 0.9]])[..., None]
    slope = gradients.of_gradient(gradients.outputs.logit_of_prediction)
    same = gradients.smoothed(slope, samples=3, noise=0.0)(KEY, logits_fn, image)
    np.testing.assert_allclose(same, slope(KEY, logits_fn, image), rtol=1e-6)
    found = gradients.smoothed(slope, samples=20_000, noise=0.5)(KEY, logits_fn, image)
    folded = stats.foldnorm.mean(np.abs(np.asarray(image[..., 0])) / 0.5, scale=0.5)
    np.testing.assert_allclose(found, 2 * np.asarray(weights) * folded, rtol=0.03)
    with pytest.raises(ValueError, match="expected at least 1 sample"):
        gradients.smoothed(slope, samples=0)
    with pytest.raises(ValueError, match="expected a standard deviation of noise"):
        gradients.smoothed(slope, noise=-1.0)
