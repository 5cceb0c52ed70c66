"""A network that a user brings, examined from a folder of images; what it is taken as, and what is refused."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.harness.examination import subjects
from experiments.harness.settings import config
from robgrad import data, runs, training

SMALL = [
    *("--auto_attack=short", "--attacked_examples=40", "--test_examples=40", "--measured_examples=6"),
    *("--attributions=gradient,noise_blurred", "--linf_evaluated=0.1,0.3", "--norms=linf", "--manifold=local-pca"),
    *("--neighbours=20", "--pca_dimensions=5", "--analysis_steps=3", "--sensitivity_samples=1"),
    *("--retrain=1", "--retraining_seeds=2", "--percentiles=50"),
]
CODE = """
import torch
from torch import nn
import jax.numpy as jnp
import numpy as np

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))

def untrained(image):
    return jnp.arange(10.0) * image.mean()

def three(image):
    return image.ravel()[:3]

def loads(weights):
    matrix = np.load(weights)
    return lambda image: image.ravel() @ matrix

broken = [1, 2]
"""


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """A folder of digits as PNG files, a Python file, and the state of a small network that was trained on them."""
    torch = pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("brought")
    digits = data.load("digits")
    for part, split in (("train", digits.train), ("test", digits.test)):
        for index, (image, label) in enumerate(zip(split.images[:600], split.labels, strict=False)):
            path = root / "photos" / part / str(label)
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(image)[..., 0]).convert("RGB").save(path / f"{index:04d}.png")
    (root / "net.py").write_text(CODE)
    sys.path.insert(0, str(root))
    try:
        import net
    finally:
        sys.path.pop(0)
    torch.manual_seed(0)
    module = net.Net()
    images = (
        torch.tensor(np.asarray(digits.train.images[:600], np.float32) / 255).permute(0, 3, 1, 2).repeat(1, 3, 1, 1)
    )
    labels = torch.tensor(np.asarray(digits.train.labels[:600], np.int64))
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in module.state_dict().items()}}, root / "net.pt"
    )
    np.save(root / "net.npy", np.zeros((192, 10), np.float32))
    return root, module.eval()


def test_a_network_of_pytorch_from_a_folder_of_images(brought, tmp_path, run):
    """Its page; its adversarial images fool PyTorch's own network, its gradients are autograd's."""
    import torch

    root, module = brought
    workdir = tmp_path / "run"
    asked = [f"--network={root}/net.py:Net,{root}/net.py:untrained", f"--weights={root}/net.pt,-"]
    printed, _ = run("examine", *asked, f"--dataset={root}/photos", f"--workdir={workdir}", *SMALL)
    results = json.loads((workdir / "results.json").read_text())
    assert [row["network"] for row in results["rows"]] == ["Net", "untrained"]
    assert "Net: Right on" in " ".join(printed.split())
    images = data.load(str(root / "photos"), None, None).test
    pixels = torch.tensor(np.asarray(images.images[:40], np.float32) / 255).permute(0, 3, 1, 2)
    clean = (module(pixels).argmax(1).numpy() == np.asarray(images.labels[:40])).mean()
    assert results["rows"][0]["test_accuracy"] == pytest.approx(clean)
    assert clean > 0.8
    assert "By ROAR, 2 retrainings for each share" in " ".join(printed.split())
    assert (workdir / "roar.svg").exists()
    kept = runs.read_arrays(workdir / "adversarial" / "Net-linf.npz")
    assert kept is not None
    moved = torch.tensor((kept["adversarial"] + 1) / 2, dtype=torch.float32).permute(0, 3, 1, 2)
    fooled = module(moved).argmax(1).numpy() != kept["labels"]
    np.testing.assert_array_equal(fooled, kept["broken_by"] != "")
    assert np.abs(kept["adversarial"].astype(np.float64) - kept["images"]).max() <= 0.3
    measured = runs.read_arrays(workdir / "measurements.npz")
    assert measured is not None
    slopes, first = measured["shown/xent/gradient"][0], pixels[: len(measured["shown/test"])].requires_grad_()
    logits = module(first)
    loss = torch.nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum")
    (expected,) = torch.autograd.grad(loss, first)
    # Half as steep in pixels from -1 to 1; the figure shows the negative loss.
    np.testing.assert_allclose(slopes, -expected.permute(0, 2, 3, 1).numpy() / 2, rtol=2e-3, atol=1e-6)
    again, _ = run("examine", *asked, f"--dataset={root}/photos", f"--workdir={workdir}", *SMALL)
    assert "finished already" in again
    dry, _ = run("examine", *asked, f"--dataset={root}/photos", f"--workdir={tmp_path}/dry", *SMALL, "--dry_run")
    assert "images in linf, at most" in dry
    assert "ROAR" in dry
    assert not (tmp_path / "dry").exists()
    torch.save({name: 2 * value for name, value in module.state_dict().items()}, root / "net.pt")
    _, said = run("examine", *asked, f"--dataset={root}/photos", f"--workdir={workdir}", *SMALL, status=1)
    assert "net.pt" in said


AS_THEY_ARE = subjects.Pixels(None, None, (0.0,), (1.0,))


def loaded(source, pixels=AS_THEY_ARE):
    return subjects.loaded((source,), (), pixels, (8, 8, 1), 10)[0]


@pytest.mark.parametrize("library", ["function", "of-batches", "pair", "nnx", "equinox", "builder"])
def test_networks_of_every_library_are_one_function(library, tmp_path):
    """Each is the same affine map, of normalised pixels; its value and gradient are the formula's."""
    pytest.importorskip("equinox")
    (tmp_path / "own.py").write_text(f'''
import equinox, jax, jax.numpy as jnp, numpy as np, flax.linen as nn
from flax import nnx
matrix = jnp.asarray(np.random.default_rng(0).normal(size=(64, 10)), jnp.float32)
class Dense(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10, use_bias=False)(images.reshape(len(images), -1))
class Nnx(nnx.Module):
    def __init__(self):
        self.matrix = nnx.Param(matrix)
    def __call__(self, images):
        return images.reshape(len(images), -1) @ self.matrix[...]
class Equinox(equinox.Module):
    matrix: jax.Array
    def __call__(self, image):
        return image.ravel() @ self.matrix
made = {{
    "function": lambda image: image.ravel() @ matrix,
    "of-batches": lambda images: images.reshape(len(images), -1) @ matrix,
    "pair": (Dense(), {{"params": {{"Dense_0": {{"kernel": matrix}}}}}}),
    "nnx": Nnx(),
    "equinox": Equinox(matrix),
    "builder": lambda: lambda image: image.ravel() @ matrix,
}}
wanted = made["{library}"]
''')
    pixels = subjects.Pixels(0.0, 255.0, (100.0,), (50.0,))
    subject = loaded(f"{tmp_path}/own.py:wanted", pixels=pixels)
    matrix = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    image = np.random.default_rng(1).uniform(-1, 1, (8, 8, 1)).astype(np.float32)
    expected = (((image + 1) / 2 * 255 - 100) / 50).ravel() @ matrix
    np.testing.assert_allclose(subject.logits_fn(jnp.asarray(image)), expected, rtol=1e-4, atol=1e-4)
    slope = jax.grad(lambda x: subject.logits_fn(x)[3])(jnp.asarray(image))
    np.testing.assert_allclose(np.ravel(slope), matrix[:, 3] * 127.5 / 50, rtol=1e-4)
    shuffled = subjects.randomised(jax.random.key(0), subject.variables)
    if library in ("pair", "nnx", "equinox"):
        before, after = (np.sort(np.ravel(jax.tree.leaves(one["params"])[0])) for one in (subject.variables, shuffled))
        np.testing.assert_array_equal(before, after)
    else:
        assert shuffled is None


def test_a_network_of_a_run_stands_beside(tmp_path):
    from robgrad import networks, stacking

    network = networks.digits_cnn()
    stack = stacking.stack([training.init_classifier(network, (8, 8, 1), jax.random.key(0)).variables] * 2)
    about = {"kind": "classifier", "network": "paper", "image_shape": [8, 8, 1], "classes": 10, "training": {}}
    about["networks"] = [{"network": "standard"}, {"network": "l2-xent-1"}]
    runs.save_stack(tmp_path / "run" / "networks" / "some", stack, about)
    every = subjects.loaded((f"{tmp_path}/run",), (), AS_THEY_ARE, (8, 8, 1), 10)
    assert [one.name for one in every] == ["standard", "l2-xent-1"]
    assert loaded(f"{tmp_path}/run:l2-xent-1").name == "l2-xent-1"
    with pytest.raises(config.ConfigError, match="expected a run with linf"):
        loaded(f"{tmp_path}/run:linf")


REFUSED = {
    "": "expected FILE.py:NAME",
    "--network={root}/none.py:Net": "expected a file that is there",
    "--network={root}/net.py:nothing": "expected a name that the file defines",
    "--network={root}/net.py:three": "expected 10 logits",
    "--network={root}/net.py:broken": "expected a network, a pair",
    "--network={root}/nowhere:standard": "expected FILE.py:NAME, a file of weights, a run's directory",
    "--network={root}/net.pt": "expected the state of a wide-resnet or preact-resnet or",
    "--network={root}/net.py:Net": "expected a module that torch.export takes for images [1, 1, 8, 8]",
    "--network={root}/net.py:untrained --weights={root}/net.npy": "a function with a parameter 'weights'",
    "--network={root}/net.py:loads --weights={root}/none.npy": "expected a file that is there",
    "--network={root}/net.py:loads --weights={root}/net.npy,{root}/net.npy": "for each of 1 networks",
    "--network={root}/net.py:loads --weights={root}/net.pt": "ValueError",
    "--network={root}/net.py:untrained --input_range=1,0": "expected the lower number first",
    "--network={root}/net.py:untrained --input_range=1": "expected finite numbers",
    "--network={root}/net.py:untrained --mean=x": "expected finite numbers",
    "--network={root}/net.py:untrained --std=0": "expected numbers above 0",
    "--network={root}/net.py:untrained --attributions=grad_cam": "expected a network with convolutions",
}


@pytest.mark.parametrize("given", REFUSED)
def test_one_line_before_work_begins(given, brought, refused, tmp_path):
    arguments = given.format(root=brought[0]).split()
    assert REFUSED[given] in refused("examine", *arguments, f"--workdir={tmp_path}/run")
