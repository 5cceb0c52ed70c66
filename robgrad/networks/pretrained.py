"""Trained residual networks from files of PyTorch: the state of a wide ResNet or PreActResNet, by the names in it.

The files of RobustBench and of most repositories of adversarial training hold such states. To load another family is to
write its names into `FAMILIES`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad.data import PIXEL_RANGE
from robgrad.networks.network import Network, OfOne, Variables, of_module
from robgrad.networks.pixels import normalised
from robgrad.networks.residual import PreActResNet

_EXPECTED = "expected arrays by name, as torch.save(module.state_dict()) writes"
# Keys under which checkpoints keep a state among other things.
_INSIDE = ("state_dict", "model_state_dict", "model")
_STATISTICS = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "variance"),
}
_WEIGHTS = {"weight": ("params", "kernel"), "bias": ("params", "bias")}


class Family(NamedTuple):
    """Names of one family of residual networks in PyTorch.

    Attributes:
      block: of an array of a block: its group from 1, its place in the group from 0, its layer and its field.
      shortcut: the block's layer that is its shortcut.
      last: the batch norm before the mean over pixels; a network may be without.
      dense: the last layer.
    """

    block: str
    shortcut: str
    last: str
    dense: str


_LAYERS = "bn1|bn2|conv1|conv2"
FAMILIES = {
    "wide ResNet": Family(rf"block(\d+)\.layer\.(\d+)\.({_LAYERS}|convShortcut)\.(\w+)", "convShortcut", "bn1", "fc"),
    "PreActResNet": Family(rf"layer(\d+)\.(\d+)\.({_LAYERS}|shortcut\.0)\.(\w+)", "shortcut.0", "bn", "linear"),
}
# What states hold beside what a network computes with: counters, and a block that the authors of TRADES left unused.
_UNUSED = re.compile(r"(.*\.num_batches_tracked|sub_block1\..*)")


def read_state(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Arrays by name from a file of PyTorch: `.safetensors`, or what `torch.save` wrote, of which nothing is executed.

    A state within a checkpoint (`state_dict`, `model_state_dict` or `model`) is taken, and `module.` before its names
    removed.

    Raises:
      ValueError: if the file is not there, or holds no arrays by name.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{file}: expected a file of weights that is there")
    if file.suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file  # Not among what robgrad installs.
        except ImportError as error:
            raise ValueError(f"{file}: needs safetensors to be read: pip install safetensors") from error
        return dict(load_file(file))
    import torch  # Nor is this.

    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file}: expected arrays by name, as torch.save(module.state_dict()) writes ({reason})"
        ) from error
    for name in _INSIDE:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{file}: {_EXPECTED}")
    return {name.removeprefix("module."): value.detach().cpu().float().numpy() for name, value in state.items()}


def of_state(
    state: Mapping[str, Any] | str | os.PathLike,
    *,
    pixel_range: tuple[float, float] = PIXEL_RANGE,
    input_range: tuple[float, float] = (0.0, 1.0),
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
) -> OfOne:
    """A wide ResNet or PreActResNet from its state in PyTorch, as a function of one image.

    Depth, width and classes are read off the shapes; PyTorch itself is needed for its own files alone. Pixels are as
    for `of_torch`.

    Args:
      state: arrays by PyTorch's names, or a file of them; see `read_state`.
      pixel_range: of the images that the function is given.
      input_range: of the pixels that the network, or the normalisation before it, expects.
      mean, std: of the normalisation, numbers or one for each channel.

    Raises:
      ValueError: if the names are those of neither family, or arrays are missing or of other shapes.

    Example:
      `logits_fn = networks.of_state("wrn-28-10.safetensors")`
    """
    arrays = {
        name: np.asarray(value, np.float32)
        for name, value in (read_state(state) if isinstance(state, str | os.PathLike) else state).items()
        if not _UNUSED.fullmatch(name)
    }
    family = next((one for one in FAMILIES.values() if any(re.fullmatch(one.block, name) for name in arrays)), None)
    if family is None or "conv1.weight" not in arrays or f"{family.dense}.weight" not in arrays:
        raise ValueError(
            f"expected the state of a {' or '.join(FAMILIES)}, got the names {', '.join([*arrays][:4])}, ...; give "
            "of_torch the module itself"
        )
    module = _architecture(family, arrays)
    variables = _variables(family, arrays, module)
    shown = normalised(arrays["conv1.weight"].shape[1], pixel_range, input_range, mean, std)
    whole = of_module(module)

    def evaluate(variables: Variables, images: Array) -> Array:
        return whole.evaluate(variables, shown(images))

    def train(variables: Variables, images: Array, weights: Array) -> tuple[Array, Variables]:
        return whole.train(variables, shown(images), weights)

    return OfOne(Network(whole.init, evaluate, train), variables)


def _architecture(family: Family, arrays: Mapping[str, np.ndarray]) -> PreActResNet:
    """The network that the names and shapes are of."""
    blocks = [re.fullmatch(family.block, name) for name in arrays]
    places = {(int(found[1]), int(found[2])) for found in blocks if found}
    groups, most = max(group for group, _ in places), max(place for _, place in places) + 1
    if places != {(group, place) for group in range(1, groups + 1) for place in range(most)}:
        raise ValueError(f"expected as many blocks in each group, got {sorted(places)}")
    first = family.block.replace(r"(\d+)", "{}").replace("\\", "").split("(")[0]
    features = [arrays[f"{first.format(group, 0)}conv1.weight"].shape[0] for group in range(1, groups + 1)]
    stem, classes = arrays["conv1.weight"].shape[0], arrays[f"{family.dense}.weight"].shape[0]
    return PreActResNet(stem, tuple(features), most, classes, f"{family.last}.weight" in arrays)


def _variables(family: Family, arrays: Mapping[str, np.ndarray], module: PreActResNet) -> Variables:
    """The arrays by our names, checked against the network's own shapes."""
    found: Variables = {"params": {}, "batch_stats": {}}
    shapes = jax.eval_shape(lambda: of_module(module).init(jax.random.key(0), (8, 8, arrays["conv1.weight"].shape[1])))
    for name, value in arrays.items():
        path, (collection, field) = _place(family, name, arrays, module.blocks)
        # Kernels are [out, in, height, width] there and [height, width, in, out] here.
        turned = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        place = found[collection]
        for step in path:
            place = place.setdefault(step, {})
        place[field] = turned
    held = {name: np.shape(leaf) for name, leaf in _by_path(found).items()}
    wanted = {name: leaf.shape for name, leaf in _by_path(shapes).items()}
    if held != wanted:
        name = next(name for name in [*wanted, *held] if held.get(name) != wanted.get(name))
        raise ValueError(f"expected an array {name} of shape {wanted.get(name)}, got {held.get(name, 'none')}")
    return jax.tree.map(jnp.asarray, found)


def _by_path(variables: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def _place(
    family: Family, name: str, arrays: Mapping[str, np.ndarray], blocks: int
) -> tuple[tuple[str, ...], tuple[str, str]]:
    """Where an array is among the variables: the modules that lead to it, and its collection and field."""
    if found := re.fullmatch(family.block, name):
        group, place, layer, field = int(found[1]), int(found[2]), found[3], found[4]
        within = f"PreActBlock_{(group - 1) * blocks + place}"
        if layer.startswith("bn"):
            return (within, f"BatchNorm_{int(layer[2]) - 1}"), _STATISTICS[field]
        shortcut = name.replace(f".{layer}.", f".{family.shortcut}.") in arrays
        index = 0 if layer == family.shortcut else int(layer[4]) - 1 + shortcut
        return (within, f"Conv_{index}"), _WEIGHTS[field]
    layer, _, field = name.rpartition(".")
    known = {
        "conv1": ("Conv_0", _WEIGHTS),
        family.last: ("BatchNorm_0", _STATISTICS),
        family.dense: ("Dense_0", _WEIGHTS),
    }
    if layer not in known or field not in known[layer][1]:
        raise ValueError(f"expected names of {family.block}, conv1, {family.last} and {family.dense}, got {name}")
    return (known[layer][0],), known[layer][1][field]
