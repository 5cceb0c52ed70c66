"""Trained residual networks from files of PyTorch: the state of a wide ResNet or PreActResNet, by the names in it.

The files of RobustBench and of most repositories of adversarial training hold such states. To load another family is to
write its names into `FAMILIES`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
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
    """Names and forms of one family of residual networks in PyTorch.

    Attributes:
      block: of an array of a block: its group, its place in the group from 0, its layer and its field.
      first_group: the number of the first group.
      norms, convolutions: the block's layers, in their order.
      shortcut: the block's layer that is its shortcut.
      ends: the first convolution, the batch norm before the mean over pixels, which a network may be without, and the
        last layer.
      form: what `PreActResNet` is told beside sizes.
    """

    block: str
    first_group: int
    norms: tuple[str, str]
    convolutions: tuple[str, str]
    shortcut: str
    ends: tuple[str, str, str]
    form: Mapping[str, Any]


_LAYERS = "bn1|bn2|conv1|conv2"
_NUMBERED = (("bn1", "bn2"), ("conv1", "conv2"))
_PREACT = Family(
    rf"layer(\d+)\.(\d+)\.({_LAYERS}|shortcut\.0)\.(\w+)", 1, *_NUMBERED, "shortcut.0", ("conv1", "bn", "linear"), {}
)
# DeepMind's; padded by hand behind the image alone, as "SAME" is for even sizes.
_DEEPMIND = Family(
    r"layer\.(\d+)\.block\.(\d+)\.(batchnorm_0|batchnorm_1|conv_0|conv_1|shortcut)\.(\w+)",
    0,
    ("batchnorm_0", "batchnorm_1"),
    ("conv_0", "conv_1"),
    "shortcut",
    ("init_conv", "batchnorm", "logits"),
    {"padding": "SAME"},
)
FAMILIES = {
    "wide-resnet": Family(
        rf"block(\d+)\.layer\.(\d+)\.({_LAYERS}|convShortcut)\.(\w+)",
        1,
        *_NUMBERED,
        "convShortcut",
        ("conv1", "bn1", "fc"),
        {},
    ),
    "preact-resnet": _PREACT,
    "preact-resnet-raw": _PREACT._replace(form={"raw_shortcut": True}),
    "dm-wide-resnet-silu": _DEEPMIND._replace(form={"padding": "SAME", "activation": nn.silu}),
    "dm-wide-resnet-relu": _DEEPMIND,
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
        try:
            return dict(load_file(file))
        except Exception as error:
            raise ValueError(f"{file}: expected a file of safetensors ({_first_line(error)})") from error
    import torch  # Nor is this.

    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own advice is to load what may run code.
        reason = _first_line(error).split(" This file can still be loaded")[0]
        raise ValueError(
            f"{file}: expected arrays by name, as torch.save(module.state_dict(), file) writes ({reason})"
        ) from error
    for name in _INSIDE:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{file}: {_EXPECTED}")
    return {name.removeprefix("module."): value.detach().cpu().float().numpy() for name, value in state.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def of_state(
    state: Mapping[str, Any] | str | os.PathLike,
    *,
    family: str | None = None,
    pixel_range: tuple[float, float] = PIXEL_RANGE,
    input_range: tuple[float, float] = (0.0, 1.0),
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
) -> OfOne:
    """A residual network of one of the `FAMILIES` from its state in PyTorch, as a function of one image.

    Depth, width and classes are read off the shapes; PyTorch itself is needed for its own files alone. Pixels are as
    for `of_torch`.

    Args:
      state: arrays by PyTorch's names, or a file of them; see `read_state`. Where it holds `mu` and `sigma`, as some of
        RobustBench's do, they are the normalisation.
      family: of `FAMILIES`, where names do not tell: PreActResNets whose shortcuts see a block's input activated
        (`preact-resnet`: He et al., 2016; `PreActBlockV2` in RobustBench) or as it is (`preact-resnet-raw`;
        `PreActBlock` there); DeepMind's wide ResNets by activation (`dm-wide-resnet-silu`, as in RobustBench, or
        `dm-wide-resnet-relu`), for images of an even number of pixels a side at every stride.
      pixel_range: of the images that the function is given.
      input_range: of the pixels that the network, or the normalisation before it, expects.
      mean, std: of the normalisation, numbers or one for each channel.

    Raises:
      ValueError: if the names are those of no family, or of several and none is given; if arrays are missing or of
        other shapes; and for a normalisation beside the state's own.

    Example:
      `logits_fn = networks.of_state("wrn-28-10.safetensors")`
    """
    arrays = {
        name: np.asarray(value, np.float32)
        for name, value in (read_state(state) if isinstance(state, str | os.PathLike) else state).items()
        if not _UNUSED.fullmatch(name)
    }
    if "mu" in arrays and "sigma" in arrays:
        if np.any(np.asarray(mean) != 0) or np.any(np.asarray(std) != 1):
            raise ValueError(f"expected no mean and std beside the state's own mu and sigma, got {mean} and {std}")
        mean, std = arrays.pop("mu").ravel().tolist(), arrays.pop("sigma").ravel().tolist()
    names = _family(arrays, family)
    module = _architecture(names, arrays)
    variables = _variables(names, arrays, module)
    shown = normalised(arrays[f"{names.ends[0]}.weight"].shape[1], pixel_range, input_range, mean, std)
    whole = of_module(module)

    def evaluate(variables: Variables, images: Array) -> Array:
        return whole.evaluate(variables, shown(images))

    def train(variables: Variables, images: Array, weights: Array) -> tuple[Array, Variables]:
        return whole.train(variables, shown(images), weights)

    return OfOne(Network(whole.init, evaluate, train), variables)


def _family(arrays: Mapping[str, np.ndarray], wanted: str | None) -> Family:
    """The family that the names are of, the one that is wanted where they are of several."""
    known = [
        name
        for name, family in FAMILIES.items()
        if any(re.fullmatch(family.block, array) for array in arrays)
        and {f"{family.ends[0]}.weight", f"{family.ends[2]}.weight"} <= arrays.keys()
    ]
    if not known or wanted not in (None, *known):
        raise ValueError(
            f"expected the state of a {wanted or ' or '.join(FAMILIES)}, got "
            + (f"that of a {' or '.join(known)}" if known else f"the names {', '.join([*arrays][:4])}, ...")
            + "; give of_torch the module itself"
        )
    if wanted is None and len(known) > 1:
        raise ValueError(
            f"expected a family, since a {' and a '.join(known)} have the same names: family=NAME, or FILE:NAME"
        )
    return FAMILIES[wanted or known[0]]


def _architecture(family: Family, arrays: Mapping[str, np.ndarray]) -> PreActResNet:
    """The network that the names and shapes are of."""
    blocks = [re.fullmatch(family.block, name) for name in arrays]
    places = {(int(found[1]) - family.first_group, int(found[2])) for found in blocks if found}
    groups, most = max(group for group, _ in places) + 1, max(place for _, place in places) + 1
    if places != {(group, place) for group in range(groups) for place in range(most)}:
        raise ValueError(f"expected as many blocks in each group, got {sorted(places)}")
    features = [0] * groups
    for found in blocks:
        if found and (found[3], found[4]) == (family.convolutions[1], "weight"):
            features[int(found[1]) - family.first_group] = arrays[found[0]].shape[0]
    stem, last, dense = family.ends
    sizes = arrays[f"{stem}.weight"].shape[0], tuple(features), most, arrays[f"{dense}.weight"].shape[0]
    return PreActResNet(*sizes, f"{last}.weight" in arrays, **family.form)


def _variables(family: Family, arrays: Mapping[str, np.ndarray], module: PreActResNet) -> Variables:
    """The arrays by our names, checked against the network's own shapes."""
    found: Variables = {"params": {}, "batch_stats": {}}
    channels = arrays[f"{family.ends[0]}.weight"].shape[1]
    shapes = jax.eval_shape(lambda: of_module(module).init(jax.random.key(0), (8, 8, channels)))
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
        group, layer, field = int(found[1]) - family.first_group, found[3], found[4]
        within = f"PreActBlock_{group * blocks + int(found[2])}"
        if layer in family.norms:
            path: tuple[str, ...] = (within, f"BatchNorm_{family.norms.index(layer)}")
            fields = _STATISTICS
        else:
            shortcut = name.replace(f".{layer}.", f".{family.shortcut}.") in arrays
            index = 0 if layer == family.shortcut else family.convolutions.index(layer) + shortcut
            path, fields = (within, f"Conv_{index}"), _WEIGHTS
    else:
        layer, _, field = name.rpartition(".")
        ends = [(("Conv_0",), _WEIGHTS), (("BatchNorm_0",), _STATISTICS), (("Dense_0",), _WEIGHTS)]
        path, fields = dict(zip(family.ends, ends, strict=True)).get(layer, ((), {}))
    if field not in fields:
        raise ValueError(f"expected names of {family.block}, {', '.join(family.ends)}, got {name}")
    return path, fields[field]
