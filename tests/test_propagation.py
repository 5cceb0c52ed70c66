"""Attributions that propagate through a network's operations, of networks of every library, against Captum."""

import captum.attr as captum
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robgrad import gradients, networks
from robgrad.gradients import outputs

KEY = jax.random.key(0)
SHAPE = (8, 8, 3)


class Block(torch.nn.Module):
    """Two convolutions with batch norm and a way around them."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.one = torch.nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.two = torch.nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.around = torch.nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(width) for _ in range(3)])
        self.relus = torch.nn.ModuleList([torch.nn.ReLU(), torch.nn.ReLU()])

    def forward(self, x):
        inner = self.norms[1](self.two(self.relus[0](self.norms[0](self.one(x)))))
        return self.relus[1](inner + self.norms[2](self.around(x)))


def shaken(module, seed=0):
    """The module in evaluation mode, its statistics and scales random and of both signs."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.weight.data.uniform_(-1.5, 1.5)
            part.bias.data.normal_(0, 0.2)
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2.0)
    return module.eval()


def resnet():
    torch.manual_seed(1)
    return shaken(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3, padding=1, bias=False), torch.nn.BatchNorm2d(6), torch.nn.ReLU(),
            Block(6, 6, 1), Block(6, 10, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(10, 5),
        )
    )  # fmt: skip


def plain():
    """Convolutions with batch norm, in one line."""
    torch.manual_seed(2)
    return shaken(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(6, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.Flatten(), torch.nn.Linear(128, 5),
        )
    )  # fmt: skip


def images(least=-1.0):
    return np.random.default_rng(0).uniform(least, 1, (4, *SHAPE)).astype(np.float32)


def in_jax(module):
    return networks.of_torch(module, SHAPE, input_range=(-1.0, 1.0))


def theirs(module, given, make, **options):
    batch = torch.tensor(given.transpose(0, 3, 1, 2), dtype=torch.float64).requires_grad_()
    module = module.double()
    found = make(module).attribute(batch, target=module(batch).argmax(1), **options)
    return found.detach().numpy().transpose(0, 2, 3, 1)


def ours(module, given, attribution):
    logits_fn = in_jax(module.float())
    return np.stack(jax.jit(jax.vmap(lambda image: attribution(KEY, logits_fn, image)))(given))


def agree(one, two):
    np.testing.assert_allclose(one, two, rtol=5e-3, atol=5e-4 * np.abs(two).max())


def test_guided_backpropagation_of_a_residual_network_equals_captums():
    got = ours(resnet(), images(), gradients.guided_backpropagation(outputs.by_channel))
    agree(got, theirs(resnet(), images(), captum.GuidedBackprop))


def test_grad_cam_of_a_residual_network_equals_captums():
    """The last block's features after its sum and ReLU; at any class."""
    small = theirs(resnet(), images(), lambda module: captum.LayerGradCam(module, module[4]), relu_attributions=True)
    expected = jax.image.resize(small[..., 0], (4, 8, 8), "linear")
    agree(ours(resnet(), images(), gradients.grad_cam()), np.asarray(expected))
    batch = torch.tensor(images().transpose(0, 3, 1, 2))
    small = captum.LayerGradCam(module := resnet(), module[4]).attribute(batch, target=3, relu_attributions=True)
    expected = jax.image.resize(small.detach().numpy()[:, 0], (4, 8, 8), "linear")
    agree(ours(resnet(), images(), gradients.grad_cam(label=3)), np.asarray(expected))


@pytest.mark.parametrize("baseline", [0.0, -1.0])
def test_deep_lift_of_a_residual_network_equals_captums(baseline):
    got = ours(resnet(), images(), gradients.deep_lift(baseline, outputs.by_channel))
    agree(got, theirs(resnet(), images(), captum.DeepLift, baselines=baseline))


def test_lrp_by_positive_products_equals_captums_of_the_merged_network():
    """Normalisation scales a convolution's kernel, by scales of either sign."""
    module = plain()
    merged = [fuse_conv_bn_eval(module[place], module[place + 1]) for place in (0, 4)]
    merged = torch.nn.Sequential(
        merged[0], torch.nn.ReLU(), torch.nn.MaxPool2d(2), merged[1], torch.nn.ReLU(), torch.nn.Flatten(), module[8]
    )
    for part in merged:
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear | torch.nn.Flatten):
            part.rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)
    # Theirs has positive weights alone, which is the rule where inputs are not negative.
    given = images(0.0)
    agree(ours(plain(), given, gradients.lrp("z+", pixels=outputs.by_channel)), theirs(merged, given, captum.LRP))


def test_lrp_by_shares_is_the_gradient_times_the_image():
    """Of networks of ReLU, sums and pooling (Ancona et al., 2018)."""
    for module in (resnet(), plain()):
        got = ours(module, images(), gradients.lrp("epsilon", 1e-9, outputs.by_channel))
        expected = theirs(module, images(), captum.InputXGradient)
        agree(got, expected)


class Hand(nn.Module):
    """A network whose activations are written out in one form or another."""

    activation: object

    @nn.compact
    def __call__(self, x):
        """Two convolutions, the second around."""
        x = self.activation(nn.Conv(6, (3, 3), padding="CIRCULAR")(x))
        x = x + self.activation(nn.GroupNorm(2)(nn.Conv(6, (3, 3))(x)))
        return nn.Dense(4)(nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1))


ACTIVATIONS = {
    "relu": nn.relu,
    "where": lambda x: jnp.where(x > 0, x, 0.0),
    "leaky relu": nn.leaky_relu,
    "leaky relu by hand": lambda x: jnp.where(x < 0, 0.1 * x, x),
    "relu6": nn.relu6,
    "hard swish": lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    "gelu": nn.gelu,
    "silu by hand": lambda x: x * jax.nn.sigmoid(x),
    "elu": nn.elu,
    "softplus": nn.softplus,
    "tanh": jnp.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_deep_lift_is_complete_whatever_the_activation(name):
    module = Hand(ACTIVATIONS[name])
    logits_fn = networks.logits_fn(module, networks.init(module, KEY, SHAPE))
    for image in images()[:2]:
        values = gradients.deep_lift(-0.5, outputs.by_channel)(KEY, logits_fn, image)
        before, after = logits_fn(jnp.full(SHAPE, -0.5)), logits_fn(jnp.asarray(image))
        label = int(after.argmax())
        assert float(values.sum()) == pytest.approx(float(after[label] - before[label]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["where", "leaky relu by hand", "hard swish", "silu by hand", "relu", "gelu"])
def test_activations_that_are_written_out_are_one_function_of_a_number(name):
    """Each pixel has its activation as relevance; a gradient against all of them is cut by guided backpropagation."""
    activation, image = ACTIVATIONS[name], jnp.asarray(images()[0])
    summed = lambda image: jnp.stack([jnp.sum(activation(image)), jnp.float32(-1e3)])  # noqa: E731
    relevance = gradients.lrp("epsilon", pixels=outputs.by_channel)(KEY, summed, image)
    np.testing.assert_allclose(relevance, activation(image), rtol=1e-4, atol=1e-5)
    against = lambda image: jnp.stack([-jnp.sum(activation(image)), jnp.float32(-1e3)])  # noqa: E731
    np.testing.assert_array_equal(gradients.guided_backpropagation()(KEY, against, image), 0.0)


class Attending(nn.Module):
    """Attention over patches."""

    @nn.compact
    def __call__(self, x):
        """One block, with softmax and layer norm."""
        x = nn.Conv(8, (2, 2), (2, 2))(x).reshape(len(x), -1, 8)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return nn.Dense(4)(nn.gelu(nn.Dense(8)(x)).mean(1))


def test_attention_has_deep_lift_and_no_lrp():
    network = Attending()
    logits_fn = networks.logits_fn(network, networks.init(network, KEY, SHAPE))
    image = jnp.asarray(images()[0])
    values = gradients.deep_lift(0.1, outputs.by_channel)(KEY, logits_fn, image)
    before, after = logits_fn(jnp.full(SHAPE, 0.1)), logits_fn(image)
    assert float(values.sum()) == pytest.approx(float((after - before)[after.argmax()]), rel=1e-3)
    with pytest.raises(ValueError, match=r"operations that LRP has a rule for, got '\w+'.*integrated gradients"):
        gradients.lrp()(KEY, logits_fn, image)


def test_functions_of_the_user():
    """A loop is refused by name; a constant network has nothing to explain; one of NaN explains nothing."""
    image = jnp.asarray(images()[0])

    def looping(image):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(2 * x), image).sum((0, 1))

    names = ("deep_lift", "lrp", "lrp_epsilon", "lrp_z_plus", "guided_backpropagation")
    for name in names:
        attribution = gradients.ATTRIBUTIONS[name]
        with pytest.raises(ValueError, match="expected a network without loops and branches, got the operation"):
            attribution(KEY, looping, image)
        np.testing.assert_array_equal(attribution(KEY, lambda image: jnp.arange(3.0), image), 0.0)
        assert np.isnan(attribution(KEY, lambda image: jnp.nan * image.sum((0, 1)), image)).all()
    # Two numbers of one image: relevance by shares is the product's terms.
    weights = jnp.asarray(images()[1])
    linear = lambda image: jnp.stack([jnp.sum(weights * image), jnp.float32(-9)])  # noqa: E731
    for name in ("deep_lift", "lrp_epsilon"):
        np.testing.assert_allclose(gradients.SIGNED[name](KEY, linear, image), weights * image, rtol=1e-3, atol=1e-5)
