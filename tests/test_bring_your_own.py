"""What a user brings: networks in PyTorch, against PyTorch itself, and images in folders, against Pillow and NumPy."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robgrad
from robgrad import attacks, data, gradients, networks, stacking, training

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
nn, functional, models = torch.nn, torch.nn.functional, torchvision.models
SHAPE = (13, 14, 3)


class Of(nn.Module):
    """A function of images, flattened, before a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.function, self.out = function, nn.LazyLinear(4)

    def forward(self, x):
        return self.out(self.function(x).flatten(1))


@pytest.fixture(autouse=True)
def seeded():
    """Weights that no other test has a hand in: some have a unit so near to 0 that rounding turns it on."""
    torch.manual_seed(0)


def agree(module, shape, tolerance=1e-4):
    """Logits and input gradients are PyTorch's, with statistics and heads that are not at their start."""
    torch.manual_seed(0)
    module = module.eval()
    module(torch.zeros(1, shape[2], *shape[:2]))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.track_running_stats:
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.05)
    own = networks.of_torch(module, shape, mean=0.4, std=0.3)
    image = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    pixels = torch.tensor((image.transpose(2, 0, 1)[None] + 1) / 2, requires_grad=True)
    logits = module((pixels - 0.4) / 0.3)
    logits[0, 3].backward()
    slope, expected = pixels.grad[0].numpy().transpose(1, 2, 0) / 2, logits[0].detach().numpy()
    close = lambda one, other: np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())  # noqa: E731
    close(jax.jit(own)(image), expected)
    close(jax.jit(jax.grad(lambda image: own(image)[3]))(image), slope)


WHOLE = {
    "resnet": (lambda: models.resnet18(num_classes=10), (32, 32, 3)),
    "vit": (
        lambda: models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10
        ),
        (32, 32, 3),
    ),
    "mobilenet": (lambda: models.mobilenet_v3_small(num_classes=10), (32, 32, 3)),
    "convnext": (
        lambda: models.ConvNeXt(
            [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)], num_classes=10
        ),
        (32, 32, 3),
    ),
    "swin": (
        lambda: models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=10),
        (64, 64, 3),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_networks_of_torchvision_are_the_same_functions(name):
    build, shape = WHOLE[name]
    agree(build(), shape)


PARTS = {
    "max pooling, ceiling": lambda x: functional.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average pooling, ceiling": lambda x: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average without padding": lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive average": lambda x: functional.adaptive_avg_pool2d(x, (5, 7)),
    "adaptive maximum": lambda x: functional.adaptive_max_pool2d(x, (4, 5)),
    "activations": lambda x: torch.cat(
        [functional.elu(x), functional.celu(x), functional.mish(x), functional.softplus(x), functional.hardswish(x)], 1
    ),
    "more activations": lambda x: torch.cat(
        [functional.gelu(x, approximate="tanh"), functional.leaky_relu(x - 0.5, 0.2), functional.logsigmoid(x)], 1
    ),
    "resizing": lambda x: functional.interpolate(functional.interpolate(x, scale_factor=2), (17, 15), mode="bilinear"),
    "resizing by factors": lambda x: torch.cat(
        [
            functional.interpolate(functional.interpolate(x, scale_factor=1.7), scale_factor=0.6, mode="bilinear"),
            functional.interpolate(x, (11, 13), mode="bilinear", align_corners=True),
        ],
        2,
    ),
    "pooling with holes": lambda x: functional.max_pool2d(x, 3, 2, 1, dilation=2),
    "types": lambda x: (x > 0.5).float() + (x > 0.2).to(x.dtype) + x * (10 * x).int(),
    "detached": lambda x: x * x.detach(),
    "one pixel": lambda x: x.mean((2, 3), keepdim=True).squeeze()[None],
    "around": nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="valid"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    ),
    "old weight norm": torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)),
    "random leaky": nn.RReLU(),
    "padding": lambda x: functional.pad(functional.pad(x, (1, 2, 1, 1), mode="reflect"), (1, 2, -1, 1), value=0.3),
    "axes": lambda x: torch.roll(torch.cat(x.flip(3).chunk(2, 2)[::-1], 2), (1, 2), (2, 3)).unbind(1)[0],
    "extremes": lambda x: x.max(2)[0] + x.min(2)[0] + x.flatten(2).topk(14)[0],
    "statistics": lambda x: x.std((2, 3)) + x.var((2, 3), unbiased=False) + x.norm(dim=(2, 3)) + x.prod(3).sum(2),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    "conditions": lambda x: torch.where(x > 0.5, x.clamp(0.2, 0.7), x.masked_fill(x > 0.3, 0.1)),
    "indices": lambda x: x[:, :, ::2, [0, 3, 1]].cumsum(2),
    "transposed convolution": nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1),
    "transposed, grouped": nn.ConvTranspose2d(3, 6, 4, 2, 1, groups=3, dilation=2),
    "grouped, dilated": nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3, stride=2),
    "normalisations": nn.Sequential(nn.GroupNorm(3, 3), nn.InstanceNorm2d(3, affine=True), nn.LayerNorm([13, 14])),
    "batch norm": nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.PReLU(3), nn.Dropout(), nn.RMSNorm([14])),
}


@pytest.mark.parametrize("name", PARTS)
def test_operators_are_the_same_functions(name):
    agree(Of(PARTS[name]), SHAPE)


def test_weights_are_arrays_that_training_and_stacks_take(digits):
    """Two networks as one stack; a few steps of fine-tuning move the parameters and not the buffers."""
    modules = []
    for seed in range(2):
        torch.manual_seed(seed)
        modules.append(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        )
    one, other = (networks.of_torch(module, (8, 8, 1)) for module in modules)
    assert {*one.variables["params"]} == {name for name, _ in modules[0].named_parameters()}
    both, mesh = stacking.stack([one.variables, other.variables]), stacking.device_mesh(2, 50)
    test = data.Split(*(leaf[:50] for leaf in digits.test))
    found = training.accuracies(one.network, attacks.no_attack, mesh)(both, test, jax.random.key(0))
    images = data.scale(jnp.asarray(test.images))
    for own, accuracy in zip((one, other), found, strict=True):
        assert accuracy == pytest.approx(np.mean(np.argmax(jax.vmap(own)(images), axis=1) == test.labels))
    start = training.init_classifier(one.network, (8, 8, 1), jax.random.key(0))
    step = training.classifier_step(one.network, attacks.no_attack)
    with pytest.warns(UserWarning, match="have not moved"):
        done = training.fit(
            step, stacking.stack([start]), training.StepSizes(), digits.train,
            mesh=stacking.device_mesh(1, 50), batch_size=50, epochs=2,
        )  # fmt: skip
    tuned = networks.logits_fn(one.network, stacking.replica(done.variables, 0))
    right = lambda own: np.mean(np.argmax(jax.vmap(own)(images), axis=1) == test.labels)  # noqa: E731
    assert right(tuned) > right(one) + 0.3


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_modules_of_other_precision_are_functions_of_float32(kind):
    """The module itself stays as it is: in training mode, of its type."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).to(kind)
    own = networks.of_torch(module, (8, 8, 1), input_range=(-1.0, 1.0))
    image = np.random.default_rng(0).uniform(-1, 1, (8, 8, 1)).astype(np.float32)
    assert own(image).dtype == np.float32
    assert module.training
    assert module[0].weight.dtype == kind
    expected = copy.deepcopy(module).float().eval()(torch.tensor(image.transpose(2, 0, 1)[None]))
    np.testing.assert_allclose(own(image), expected[0].detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_modules_with_float64_on(kind):
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)).to(kind)
    images = np.random.default_rng(0).uniform(-1, 1, (10, 8, 8, 1))
    with jax.enable_x64(True):
        own = networks.of_torch(module, (8, 8, 1))
        assert own(images[0]).dtype == np.dtype(str(kind).removeprefix("torch."))
        labels = np.argmax(jax.vmap(own)(images), axis=1)
        assert robgrad.robust_accuracy(own, images, labels, epsilon=1e-4, version="short").accuracy == 1.0


def test_tied_weights_and_buffers_that_are_not_kept():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.weight = self.one.weight
            self.register_buffer("shift", torch.arange(4.0), persistent=False)

        def forward(self, x):
            return self.other(self.one(x.flatten(1) + self.shift))

    module = Tied()
    own = networks.of_torch(module, (2, 2, 1), input_range=(-1.0, 1.0))
    image = np.linspace(-1, 1, 4, dtype=np.float32).reshape(2, 2, 1)
    expected = module(torch.tensor(image.transpose(2, 0, 1)[None]))[0].detach().numpy()
    np.testing.assert_allclose(own(image), expected, atol=1e-5)


def test_a_module_that_keeps_what_it_computed_stays_as_it_is():
    class Keeping(nn.Sequential):
        def forward(self, x):
            self.seen = super().forward(x)
            return self.seen

    module = Keeping(nn.Flatten(), nn.Linear(64, 4), nn.Dropout()).train()
    module(torch.ones(1, 1, 8, 8))
    own = networks.of_torch(module, (8, 8, 1), pixel_range=(0.0, 1.0))
    assert all(part.training for part in module.modules())
    expected = module.eval()(torch.ones(1, 1, 8, 8))[0].detach().numpy()
    np.testing.assert_allclose(own(jnp.ones((8, 8, 1))), expected, atol=1e-5)


def test_one_logit_is_two_classes():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    own = networks.of_torch(module, (2, 2, 1), input_range=(-1.0, 1.0))
    image = np.ones((2, 2, 1), np.float32)
    logit = module(torch.ones(1, 1, 2, 2)).item()
    np.testing.assert_allclose(own(image), [0.0, logit], atol=1e-6)
    assert jax.nn.softmax(own(image))[1] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Outputs(nn.Module):
    def forward(self, x):
        return x.flatten(1), x


REFUSED = {
    "no module": (lambda x: x, {}, "expected a torch.nn.Module, got function"),
    "images": (nn.Flatten(), {"image_shape": (8, 8)}, "expected an image shape of height, width and channels"),
    "channels": (nn.Conv2d(3, 4, 3), {}, "expected a module that torch.export takes for images"),
    "branches": (Branching(), {}, "expected a module that torch.export takes for images"),
    "maps": (nn.Conv2d(1, 4, 3), {}, r"expected logits of shape \[1, classes\], got \[1, 4, 6, 6\]"),
    "operator": (Of(lambda x: torch.fft.fft2(x).abs()), {}, "no rule for the operators aten._fft_"),
    "random": (Of(functional.dropout), {}, "expected it to be off in evaluation mode"),
    "outputs": (Outputs(), {}, "expected a module that gives logits alone, got 2 outputs"),
    "axes": (nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 1, 1)), {}, "got 3 axes of pixels"),
    "mean": (nn.Flatten(), {"mean": (0.1, 0.2)}, "mean: expected a number, or one for each of 1 channels"),
    "deviation": (nn.Flatten(), {"std": 0.0}, "expected deviations above 0"),
    "range": (nn.Flatten(), {"pixel_range": (1.0, 0.0)}, "expected ranges that are not empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_brought_is_a_line(name):
    module, options, line = REFUSED[name]
    if isinstance(module, Of):
        module(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=line) as raised:
        networks.of_torch(module, **{"image_shape": (8, 8, 1), **options})
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def photos(digits, tmp_path_factory):
    """Digits as PNG files in class folders, split in two."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("photos")
    for part, split in (("train", digits.train), ("test", digits.test)):
        for place, (pixels, label) in enumerate(zip(*split, strict=True)):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            image.fromarray(pixels[..., 0]).save(folder / f"{place:04d}.png")
    return root


def test_a_network_of_pytorch_and_a_folder_of_images(digits, photos):
    """The images are those written; the network withstands what pyautoattack says that it does, image by image."""
    autoattack = pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
    loaded = data.load(str(photos))
    assert loaded.classes == tuple(f"class{label}" for label in range(10))
    pairs = lambda split: sorted((int(label), image.tobytes()) for image, label in zip(*split, strict=True))  # noqa: E731
    for part in ("train", "test"):
        assert pairs(getattr(loaded, part)) == pairs(getattr(digits, part))
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    pixels = torch.tensor(loaded.train.images.transpose(0, 3, 1, 2) / 255, dtype=torch.float32)
    targets, optimizer = torch.tensor(loaded.train.labels).long(), torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(5):
        for rows in torch.randperm(len(pixels)).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(module(pixels[rows]), targets[rows]).backward()
            optimizer.step()
    own = networks.of_torch(module, (8, 8, 1), pixel_range=(0.0, 1.0))
    rows = np.random.default_rng(0).permutation(len(loaded.test.labels))[:50]
    images, labels = (loaded.test.images[rows] / 255).astype(np.float32), loaded.test.labels[rows]
    ours = robgrad.robust_accuracy(
        own, images, labels, norm="linf", epsilon=0.06, pixel_range=(0.0, 1.0), version="short"
    )
    options = {"norm": "Linf", "eps": 0.06, "seed": 0, "device": "cpu", "version": "custom"}
    theirs = autoattack.AutoAttack(module.eval(), attacks=["apgd-ce", "apgd-t"], **options)
    theirs.verbose = False
    given = torch.tensor(images.transpose(0, 3, 1, 2))
    moved = theirs.run_standard_evaluation(given, torch.tensor(labels).long(), batch_size=50)[0]
    with torch.no_grad():
        robust = (module(moved).argmax(1).numpy() == labels) & (module(given).argmax(1).numpy() == labels)
    assert 0.1 < robust.mean() < 0.9
    assert np.mean(ours.robust == robust) >= 0.99
    slope = gradients.loss_gradient(own, jnp.asarray(images[0]))
    pixels = given[:1].clone().requires_grad_()
    logits = module(pixels)
    functional.cross_entropy(logits, logits.argmax(1)).backward()
    np.testing.assert_allclose(slope[..., 0], pixels.grad[0, 0].numpy(), atol=1e-4 * np.abs(slope).max())


def test_folders_without_a_split_and_other_sizes(photos, tmp_path):
    image = pytest.importorskip("PIL.Image")
    whole = data.load(str(photos / "train"))
    again = data.load(str(photos / "train"))
    assert whole.name == again.name
    np.testing.assert_array_equal(whole.test.images, again.test.images)
    counts = np.bincount(whole.train.labels), np.bincount(whole.test.labels)
    np.testing.assert_allclose(counts[1] / (counts[0] + counts[1]), 0.2, atol=0.01)
    for name, size, colour in (("a", (20, 10), (250, 0, 0)), ("b", (12, 12), (0, 0, 250))):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        for place in range(3):
            image.new("RGB", size, colour).save(tmp_path / "mixed" / name / f"{place}.jpg")
    with pytest.raises(data.DataError, match=r"expected images of one size, 20x10 as 0.jpg, got 12x12"):
        data.load(str(tmp_path / "mixed"))
    resized = data.load(str(tmp_path / "mixed"), size=16)
    assert resized.train.images.shape == (4, 16, 16, 3)
    red = resized.train.images[resized.train.labels == 0]
    assert red[0, 8, 8, 0] > 240 > 10 > red[0, 8, 8, 2]


def test_folders_of_arrays(digits, tmp_path):
    for part in ("train", "test"):
        split = getattr(digits, part)
        np.save(tmp_path / f"{part}_images.npy", split.images[..., 0])
        np.save(tmp_path / f"{part}_labels.npy", split.labels)
    loaded = data.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.train.images, digits.train.images)
    with pytest.raises(data.DataError, match="expected a folder of images to resize"):
        data.load(str(tmp_path), size=16)
    with pytest.raises(data.DataError, match="expected a folder of images to resize"):
        data.load("digits", size=16)


def test_folders_that_are_no_data_set(tmp_path):
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(data.DataError, match="expected a folder of images or arrays, found none"):
        data.load(str(tmp_path / "none"))
    with pytest.raises(data.DataError, match="two or more classes"):
        data.load(str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(data.DataError, match=r"expected images .* found none"):
        data.load(str(tmp_path))
    for name in ("a", "b"):
        image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(data.DataError, match="expected two images or more"):
        data.load(str(tmp_path))
    (tmp_path / "b" / "1.png").write_bytes(b"no image")
    with pytest.raises(data.DataError, match="cannot be read as an image"):
        data.load(str(tmp_path))
    image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "b" / "1.png")
    with pytest.raises(data.DataError, match="expected an image of 8 bits a channel, got one of mode I"):
        data.load(str(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(data.DataError, match="expected folders train and test"):
        data.load(str(tmp_path))
