"""Networks written in PyTorch: their graph of operators, exported, becomes a function of JAX with the same weights.

`torch.export` writes a module as a list of PyTorch's core operators; each has a rule in `operators.RULES`. Arrays keep
PyTorch's order `[1, C, H, W]` inside; images are `[H, W, C]` outside.
"""

import contextlib
import copy
import functools
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.data import PIXEL_RANGE
from robgrad.networks.network import Network, OfOne, Variables
from robgrad.networks.operators import RULES, Rule
from robgrad.networks.pixels import normalised


def of_torch(
    module: Any,
    image_shape: Sequence[int],
    *,
    pixel_range: tuple[float, float] = PIXEL_RANGE,
    input_range: tuple[float, float] = (0.0, 1.0),
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
) -> OfOne:
    """A `torch.nn.Module` in evaluation mode as a function of one image, with its weights as arrays of JAX.

    The image's pixels, in `pixel_range`, are mapped to `input_range`, normalised as (pixel - mean) / std for each
    channel, and handed to the module as `[1, C, H, W]`. The function works under `jit`,
    `vmap` and `grad`, and needs PyTorch no more. Its gradients are those of the operators that it is made of, not of
    a backward pass written by hand (`torch.autograd.Function`), which PyTorch does not export; batch norm without
    statistics of its own (`track_running_stats=False`) takes those of the one image.

    Args:
      module: maps `[N, C, H, W]` to logits `[N, classes]`; one logit z is taken for two classes, of logits 0 and z. A
        copy of it is put into evaluation mode; it must not branch on the values of its input. Weights of half precision
        become float32.
      image_shape: `[H, W, C]` of the images.
      pixel_range: of the images that the function is given; robgrad's own are in [-1, 1].
      input_range: of the pixels that the module, or the normalisation before it, expects; PyTorch's `ToTensor` gives
        [0, 1].
      mean, std: of the normalisation, numbers or one for each channel, where it is not part of the module.

    Returns:
      What attacks and attributions take as `logits_fn`; its `network` and `variables` are what `training.accuracies`
      and stacks take. `variables` has the module's parameters and buffers by their names.

    Raises:
      ValueError: if the module is none, cannot be exported, has operators without a rule, which are named, or gives
        anything but logits `[1, classes]`.

    Example:
      `logits_fn = networks.of_torch(net, (32, 32, 3), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))`
    """
    import torch  # Not among what robgrad installs.

    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"expected a torch.nn.Module, got {type(module).__name__}")
    if len(image_shape) != 3:
        raise ValueError(f"expected an image shape of height, width and channels, got {tuple(image_shape)}")
    height, width, channels = map(int, image_shape)
    shown = normalised(channels, pixel_range, input_range, mean, std)
    exported = _exported(module, (1, channels, height, width))
    graph, names, held = exported.graph_module.graph, _inputs(exported), _arrays(exported)
    missing = sorted({str(one.target) for one in graph.nodes if one.op == "call_function" and _rule(one) is None})
    if missing:
        raise ValueError(f"{type(module).__name__}: no rule for the operators {', '.join(missing)}")

    # Compiled programs take it in; what traces the network often, and each of its derivatives, traces this once.
    run = jax.jit(lambda variables, pixels: _run(graph, names, variables, pixels))

    def of_image(variables: Variables, image: Array) -> Array:
        if image.shape != (height, width, channels) or not jnp.issubdtype(image.dtype, jnp.floating):
            wanted = f"a floating-point image [{height}, {width}, {channels}]"
            raise ValueError(f"expected {wanted}, got {image.dtype} of shape {list(image.shape)}")
        # Weights of float32 take no images of float64.
        image = image.astype(next(iter(variables["params"].values()), image).dtype)
        logits = run(variables, jnp.transpose(shown(image), (2, 0, 1))[None])
        return logits[0] if logits.shape[-1] > 1 else jnp.concatenate([jnp.zeros_like(logits[0]), logits[0]])

    def evaluate(variables: Variables, images: Array) -> Array:
        if len(images) == 1:
            return of_image(variables, images[0])[None]
        return jax.vmap(functools.partial(of_image, variables))(images)

    def train(variables: Variables, images: Array, weights: Array) -> tuple[Array, Variables]:
        del weights
        return evaluate(variables, images), variables

    def shape_of() -> tuple[int, ...]:
        kind = next(iter(held["params"].values()), jnp.zeros((), jnp.float32)).dtype
        image = jax.ShapeDtypeStruct((1, channels, height, width), kind)
        found = jax.eval_shape(lambda pixels: _run(graph, names, held, pixels), image)
        return tuple(getattr(found, "shape", ()))

    outputs = len(next(node for node in graph.nodes if node.op == "output").args[0])
    if outputs != 1:
        raise ValueError(
            f"{type(module).__name__}: expected a module that gives logits alone, got {outputs} outputs; wrap it in "
            "one that returns the logits"
        )
    try:
        shape = shape_of()
    except (TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{type(module).__name__}: an operator is used in a way that has no rule ({reason})"
        ) from error
    if len(shape) != 2 or shape[0] != 1:
        raise ValueError(f"{type(module).__name__}: expected logits of shape [1, classes], got {list(shape)}")
    return OfOne(Network(lambda key, image_shape: held, evaluate, train), held)


def _exported(module: Any, shape: tuple[int, ...]) -> Any:
    """The graph of a module's evaluation of zeros of a shape; the module stays as it is.

    Raises:
      ValueError: if it cannot be exported.
    """
    import torch

    training = {part: part.training for part in module.modules()}
    try:
        with contextlib.suppress(RuntimeError):  # Raised where it holds a tensor that was computed, as hooks do.
            module = copy.deepcopy(module)
        device = next((leaf.device for leaf in (*module.parameters(), *module.buffers())), "cpu")
        example = torch.zeros(shape, dtype=_dtype_of(module, torch), device=device)
        exported = torch.export.export(module.eval(), (example,))
        stops = sum(getattr(node.target, "_opname", "").startswith("detach") for node in exported.graph.nodes)
        exported = exported.run_decompositions()
        # What is detached is an alias in PyTorch's core operators.
        aliases = [node for node in exported.graph.nodes if getattr(node.target, "_opname", "") == "alias"]
        if stops != len(aliases) and stops:
            warnings.warn(f"{type(module).__name__}: gradients pass where the module detaches", stacklevel=3)
        for node in aliases if stops == len(aliases) else ():
            node.meta["detached"] = True
        return exported
    except Exception as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        reason = lines[0]
        if "data-dependent" in str(error):
            reason = f"it branches on the values of its input: {reason}"
        raise ValueError(
            f"{type(module).__name__}: expected a module that torch.export takes for images {list(shape)} ({reason})"
        ) from error
    finally:
        for part, was in training.items():
            part.training = was


def _dtype_of(module: Any, torch: Any) -> Any:
    return next((leaf.dtype for leaf in module.parameters() if leaf.is_floating_point()), torch.float32)


def _inputs(exported: Any) -> dict[str, tuple[str, str] | None]:
    """Of each placeholder of the graph the collection and name of what it holds; None for the image."""
    kinds = {"PARAMETER": "params", "BUFFER": "buffers", "CONSTANT_TENSOR": "constants"}
    found = {}
    for spec in exported.graph_signature.input_specs:
        kind = kinds.get(spec.kind.name)
        found[spec.arg.name] = (kind, spec.target) if kind else None
    return found


def _arrays(exported: Any) -> Variables:
    """Parameters, buffers and constants by name."""
    held: Variables = {"params": {}, "buffers": {}, "constants": {}}
    for spec in exported.graph_signature.input_specs:
        if spec.kind.name == "PARAMETER":
            held["params"][spec.target] = _array(exported.state_dict[spec.target])
        elif spec.kind.name == "BUFFER":
            stored = exported.state_dict if spec.target in exported.state_dict else exported.constants
            held["buffers"][spec.target] = _array(stored[spec.target])
        elif spec.kind.name == "CONSTANT_TENSOR":
            held["constants"][spec.target] = _array(exported.constants[spec.target])
    return held


def _array(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return jnp.asarray((tensor.float() if half else tensor).numpy())


def _run(graph: Any, names: dict[str, tuple[str, str] | None], variables: Variables, pixels: Array) -> Any:
    """The graph's output for an image `[1, C, H, W]`."""
    known: dict[Any, Any] = {}

    def value(argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return type(argument)(value(one) for one in argument)
        return known.get(argument, argument) if hasattr(argument, "op") else argument

    for node in graph.nodes:
        if node.op == "placeholder":
            place = names[node.name]
            known[node] = pixels if place is None else variables[place[0]][place[1]]
        elif node.meta.get("detached"):
            known[node] = jax.lax.stop_gradient(value(node.args[0]))
        elif node.op == "call_function":
            arguments = {name: value(one) for name, one in node.kwargs.items()}
            try:
                known[node] = _rule(node)(*value(node.args), **arguments)  # type: ignore[misc]
            except (TypeError, ValueError, IndexError) as error:
                raise ValueError(f"{node.target}: {(str(error).strip() or type(error).__name__)}") from error
        elif node.op == "output":
            (found,) = value(node.args[0])
            return found
    return None


def _rule(node: Any) -> Rule | None:
    if node.target is operator.getitem:
        return operator.getitem
    return RULES.get(getattr(node.target, "_opname", ""))
