"""States of PyTorch's residual networks load into ours by name: logits and gradients as PyTorch's own modules give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, data, networks, stacking, training

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


class Block(nn.Module):
    """Batch norm and ReLU before each convolution; the shortcut has another name in each family."""

    def __init__(self, inputs, outputs, stride, shortcut, raw=False):
        super().__init__()
        self.raw = raw
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.short = None
        if stride > 1 or inputs != outputs:
            self.short = nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False)
            setattr(self, shortcut, self.short if shortcut == "convShortcut" else nn.Sequential(self.short))

    def forward(self, x):
        active = functional.relu(self.bn1(x))
        around = x if self.short is None else self.short(x if self.raw else active)
        return around + self.conv2(functional.relu(self.bn2(self.conv1(active))))


class Wide(nn.Module):
    """WRN-10-k as the field has it."""

    def __init__(self, width, classes=5, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        sizes = [16, 16 * width, 32 * width, 64 * width]
        for group in range(3):
            part = nn.Module()
            block = Block(sizes[group], sizes[group + 1], 2 if group else 1, "convShortcut")
            part.layer = nn.Sequential(block)
            setattr(self, f"block{group + 1}", part)
        self.bn1, self.fc = nn.BatchNorm2d(sizes[3]), nn.Linear(sizes[3], classes)

    def forward(self, x):
        x = self.conv1(x)
        for group in range(3):
            x = getattr(self, f"block{group + 1}").layer(x)
        return self.fc(functional.relu(self.bn1(x)).mean((2, 3)))


class PreAct(nn.Module):
    """PreActResNet, with or without batch norm at its end; its shortcuts see what is activated, or the input itself."""

    def __init__(self, ends, classes=5, raw=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        sizes = [8, 8, 12, 16]
        for group in range(3):
            first = Block(sizes[group], sizes[group + 1], 2 if group else 1, "shortcut", raw)
            second = Block(sizes[group + 1], sizes[group + 1], 1, "shortcut")
            setattr(self, f"layer{group + 1}", nn.Sequential(first, second))
        if ends:
            self.bn = nn.BatchNorm2d(16)
        self.ends, self.linear = ends, nn.Linear(16, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear((functional.relu(self.bn(x)) if self.ends else x).mean((2, 3)))


class DeepMindBlock(nn.Module):
    """As `Block`, with an activation and zeros behind the image alone where windows are strided."""

    def __init__(self, inputs, outputs, stride, activation):
        super().__init__()
        self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        self.zeros, self.activation = (0, 1, 0, 1) if stride > 1 else (1, 1, 1, 1), activation

    def forward(self, x):
        active = self.activation(self.batchnorm_0(x))
        around = x if self.shortcut is None else self.shortcut(active)
        active = self.conv_0(functional.pad(active, self.zeros))
        return around + self.conv_1(self.activation(self.batchnorm_1(active)))


class DeepMind(nn.Module):
    """A wide ResNet by the names of DeepMind's."""

    def __init__(self, activation, blocks=2, classes=5):
        super().__init__()
        self.init_conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        sizes, groups = [16, 16, 32, 64], []
        for group in range(3):
            part = nn.Module()
            rest = [DeepMindBlock(sizes[group + 1], sizes[group + 1], 1, activation) for _ in range(blocks - 1)]
            part.block = nn.Sequential(
                DeepMindBlock(sizes[group], sizes[group + 1], 2 if group else 1, activation), *rest
            )
            groups.append(part)
        self.layer = nn.ModuleList(groups)
        self.batchnorm, self.logits, self.activation = nn.BatchNorm2d(64), nn.Linear(64, classes), activation

    def forward(self, x):
        x = self.init_conv(x)
        for part in self.layer:
            x = part.block(x)
        return self.logits(self.activation(self.batchnorm(x)).mean((2, 3)))


def settled(module):
    """With statistics and scales that are not those of a fresh network."""
    torch.manual_seed(0)
    with torch.no_grad():
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d):
                one.running_mean.normal_(0, 0.3)
                one.running_var.uniform_(0.5, 2.0)
                one.weight.uniform_(0.5, 1.5)
                one.bias.normal_(0, 0.2)
    # Blocks register their shortcut under two names here, of which files have one.
    state = {name: value for name, value in module.state_dict().items() if ".short." not in name}
    return module.eval(), state


MODULES = {
    "wide": (lambda: Wide(1), None),
    "wider": (lambda: Wide(2), "wide-resnet"),
    "preact": (lambda: PreAct(True), "preact-resnet"),
    "preact-ends": (lambda: PreAct(False), "preact-resnet"),
    "preact-raw": (lambda: PreAct(True, raw=True), "preact-resnet-raw"),
    "dm-silu": (lambda: DeepMind(functional.silu), "dm-wide-resnet-silu"),
    "dm-relu": (lambda: DeepMind(functional.relu, 1), "dm-wide-resnet-relu"),
}


@pytest.mark.parametrize("size", [16, 13])
@pytest.mark.parametrize("name", MODULES)
def test_a_state_is_the_same_function(name, size):
    if name.startswith("dm") and size % 4:
        pytest.skip("DeepMind's networks are for even sizes")
    make, family = MODULES[name]
    module, state = settled(make())
    own = networks.of_state(state, family=family, input_range=(0, 1), mean=(0.5, 0.4, 0.3), std=0.25)
    image = np.random.default_rng(0).uniform(-1, 1, (size, size, 3)).astype(np.float32)
    pixels = torch.tensor(image, requires_grad=True)
    shown = ((pixels + 1) / 2 - torch.tensor([0.5, 0.4, 0.3])) / 0.25
    logits = module(shown.permute(2, 0, 1)[None])[0]
    logits[2].backward()
    np.testing.assert_allclose(own(jnp.asarray(image)), logits.detach(), rtol=1e-4, atol=1e-4)
    slope = jax.grad(lambda x: own(x)[2])(jnp.asarray(image))
    np.testing.assert_allclose(slope, pixels.grad, rtol=1e-3, atol=1e-4)


def test_files_are_read_without_executing_anything(tmp_path):
    module, state = settled(Wide(1))
    expected = networks.of_state(state)(jnp.zeros((8, 8, 3)))
    given = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    given["state_dict"] |= {"module.sub_block1.layer.0.conv1.weight": torch.zeros(1)}
    torch.save(given, tmp_path / "net.pt")
    np.testing.assert_array_equal(networks.of_state(tmp_path / "net.pt")(jnp.zeros((8, 8, 3))), expected)
    torch.save(module, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match="expected arrays by name"):
        networks.of_state(tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected arrays by name"):
        networks.of_state(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a file of weights"):
        networks.of_state(tmp_path / "none.pt")


def test_a_state_in_safetensors(tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file
    _, state = settled(Wide(1))
    save({name: value.contiguous() for name, value in state.items()}, tmp_path / "net.safetensors")
    image = jnp.zeros((8, 8, 3))
    expected = networks.of_state(state)(image)
    np.testing.assert_array_equal(networks.of_state(tmp_path / "net.safetensors")(image), expected)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda state: {"weight": np.zeros((3, 3))}, "expected the state of a wide-resnet or preact-resnet or"),
        (lambda state: state | {"odd.weight": np.zeros(3)}, "got odd.weight"),
        (lambda state: state | {"block1.layer.0.bn1.odd": np.zeros(3)}, "got block1.layer.0.bn1.odd"),
        (lambda state: {name: one for name, one in state.items() if name != "bn1.bias"}, "expected an array"),
        (lambda state: state | {"fc.weight": np.zeros((5, 7))}, "expected an array"),
        (lambda state: {name: one for name, one in state.items() if "block2" not in name}, "as many blocks"),
    ],
)
def test_other_states_are_refused(changed, said):
    _, state = settled(Wide(1))
    with pytest.raises(ValueError, match=said):
        networks.of_state(changed(state))


@pytest.mark.parametrize(("module", "first"), [(lambda: PreAct(True), "preact"), (lambda: DeepMind(torch.relu), "dm")])
def test_forms_that_names_do_not_tell_are_asked_for(module, first):
    """Two networks whose states have the same names and shapes, and other logits: neither is taken silently."""
    _, state = settled(module())
    with pytest.raises(ValueError, match=f"expected a family, since a {first}.* have the same names"):
        networks.of_state(state)
    with pytest.raises(ValueError, match=f"expected the state of a wide-resnet, got that of a {first}"):
        networks.of_state(state, family="wide-resnet")
    with pytest.raises(ValueError, match="expected the state of a vgg"):
        networks.of_state(state, family="vgg")


def test_a_states_own_normalisation_is_its_own():
    _, state = settled(Wide(1))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    held = {"mu": np.reshape(mean, (1, 3, 1, 1)), "sigma": np.reshape(std, (1, 3, 1, 1))}
    image = jnp.full((8, 8, 3), 0.3)
    expected = networks.of_state(state, mean=mean, std=std)(image)
    np.testing.assert_allclose(networks.of_state(state | held)(image), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="beside the state's own mu and sigma"):
        networks.of_state(state | held, std=0.25)


def test_a_state_is_trained_on():
    """What is loaded trains as any network here: batch norm in training mode, statistics that move."""
    own = networks.of_state(settled(Wide(1))[1])
    step = training.classifier_step(own.network, attacks.no_attack)
    states = training.init_classifier(own.network, (8, 8, 3), jax.random.key(0))._replace(variables=own.variables)
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    split = data.Split(images, np.arange(20) % 5)
    trained = training.fit(step, stacking.stack([states]), training.StepSizes(), split, batch_size=10, epochs=1)
    before, after = own.variables["batch_stats"], stacking.replica(trained.variables, 0)["batch_stats"]
    moved = jax.tree.map(lambda one, two: float(jnp.abs(one - two).max()), before, after)
    assert min(jax.tree.leaves(moved)) > 0
