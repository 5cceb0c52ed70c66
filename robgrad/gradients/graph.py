"""A network as the operations that it is made of, between which an attribution shares out what it explains.

JAX traces a function of one image to its operations. Each of those that depend on the image is of a kind, by which a
rule knows what to do: see `Kind`. Elementwise operations that together are a function of one array, such as a SiLU or a
leaky ReLU that is written out, are taken for one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core

from robgrad.networks import LogitsFn

# - moved: numbers in other places, as by a reshape or a slice.
# - linear: sums of numbers that depend on the image, as in a residual sum or a mean.
# - affine: each number times or plus a constant.
# - product: a matrix product or convolution of what moves with a kernel.
# - bilinear: a product, elementwise or not, of two arrays that both move; `div` is one.
# - choice: each number of the result is one of those given, as in max-pooling.
# - rectifier: a function of each number, as ReLU and its kin; curve: another one, as tanh.
# - other: none of these.
Kind = Literal["moved", "linear", "affine", "product", "bilinear", "choice", "rectifier", "curve", "other"]

_MOVES = {
    *("reshape", "transpose", "broadcast_in_dim", "slice", "squeeze", "expand_dims", "rev", "pad", "concatenate"),
    *("convert_element_type", "copy", "copy_p", "reduce_precision", "optimization_barrier", "split", "gather"),
    *("dynamic_slice", "dynamic_update_slice", "scatter", "stack", "unstack", "tile", "stop_gradient"),
}
_SUMS = {"add", "sub", "neg", "add_any", "reduce_sum", "reduce_window_sum", "cumsum"}
_PRODUCTS = {"dot_general", "conv_general_dilated", "conv"}
_CHOICES = {"reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"}
_CURVES = {
    *("exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "erf_inv", "sqrt", "rsqrt", "cbrt"),
    *("square", "integer_pow", "pow", "abs", "sign", "sin", "cos", "tan", "sinh", "cosh", "asinh", "atan2", "floor"),
    *("ceil", "round", "min", "clamp", "lgamma", "rem"),
}
_CONDITIONS = {"eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor", "is_finite"}
_ELEMENTWISE = _CURVES | _CONDITIONS | {"max", "mul", "div", "select_n", "add", "sub", "neg", "convert_element_type"}
_LOOPS = {"scan", "while", "cond"}


class Step(NamedTuple):
    """One operation.

    Attributes:
      name: of the operation, as JAX calls it; `conv` is `networks.layers.conv`.
      kind: of what it does to what moves.
      apply: of all that it reads to all that it writes.
      reads, writes: places of values.
      moving: which of `reads` depend on the image and can be differentiated, by their order.
      axes: where a convolution's result has batch, height, width and channels; or the order of a transposition.
    """

    name: str
    kind: Kind
    apply: Callable[..., Sequence[Array]]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    moving: tuple[int, ...]
    axes: tuple[int, ...] = ()

    def given(self, values: Sequence[Any]) -> list[Any]:
        """What it reads."""
        return [values[place] for place in self.reads]

    def transposed(self, given: Sequence[Any], back: Sequence[Array]) -> list[Array]:
        """What its derivative's transpose makes of cotangents of what it writes, one for each of `moving`."""

        def of_moving(*moving):
            every = list(given)
            for place, value in zip(self.moving, moving, strict=True):
                every[place] = value
            return [one for one in self.apply(*every) if jnp.issubdtype(one.dtype, jnp.floating)]

        _, transpose = jax.vjp(of_moving, *(given[place] for place in self.moving))
        return list(transpose(list(back)))


class Graph(NamedTuple):
    """A network of one image: its steps in order, the values that are known beforehand, and where its ends are."""

    steps: list[Step]
    constants: Mapping[int, Any]
    places: int
    image: int
    logits: int

    def values(self, image: Array) -> list[Any]:
        """Every value on the way from an image to its logits, by place."""
        values: list[Any] = [self.constants.get(place) for place in range(self.places)]
        values[self.image] = image
        for step in self.steps:
            for place, value in zip(step.writes, step.apply(*step.given(values)), strict=True):
                values[place] = value
        return values

    def passed_back(
        self, values: Sequence[Any], start: Array, rule: Callable[[int, list[Any], list[Array]], Sequence[Array]]
    ) -> list[Any]:
        """What has come back to each place from the logits, None where nothing has.

        Args:
          values: of the image.
          start: what the logits are given.
          rule: the step's index, what it reads, and what its results have got, to what each of its `moving` gets.
        """
        back: list[Any] = [None] * self.places
        back[self.logits] = start
        for index in range(len(self.steps) - 1, -1, -1):
            step = self.steps[index]
            floating = [place for place in step.writes if jnp.issubdtype(values[place].dtype, jnp.floating)]
            if not step.moving or all(back[place] is None for place in floating):
                continue
            got = [jnp.zeros_like(values[place]) if back[place] is None else back[place] for place in floating]
            for order, share in zip(step.moving, rule(index, step.given(values), got), strict=True):
                place = step.reads[order]
                back[place] = share if back[place] is None else back[place] + share
        return back

    def back_to_image(self, back: Sequence[Any], image: Array) -> Array:
        """What has come back to the image; nothing where the network does not look at it."""
        return jnp.zeros_like(image) if back[self.image] is None else back[self.image]


def traced(logits_fn: LogitsFn, image: Array) -> Graph:
    """The operations of a network on one image `[H, W, C]`.

    Raises:
      ValueError: if the image goes through a loop or a branch, whose operations it cannot see.
    """
    program = jax.make_jaxpr(logits_fn)(image)
    tracer = _Tracer()
    (start,) = tracer.fresh(1)
    tracer.depends.add(start)
    (logits,) = tracer.inlined(program.jaxpr, program.consts, [start])
    return Graph(tracer.steps, tracer.constants, tracer.places, start, logits)


class _Tracer:
    """What is known while the operations of a network are listed."""

    def __init__(self):
        self.steps: list[Step] = []
        self.constants: dict[int, Any] = {}
        self.places = 0
        # Places of values that depend on the image, those of them that can be differentiated, and who wrote them.
        self.depends: set[int] = set()
        self.floating: set[int] = set()
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.writers: dict[int, int] = {}

    def fresh(self, count: int) -> list[int]:
        self.places += count
        return list(range(self.places - count, self.places))

    def constant(self, value: Any) -> int:
        (place,) = self.fresh(1)
        self.constants[place] = value
        self.shapes[place] = jnp.shape(value)
        return place

    def inlined(self, program: Any, consts: Sequence[Any], given: Sequence[int]) -> list[int]:
        """Lists a program's operations, those of the functions that it calls in their place; where its results are."""
        places = dict(zip(program.constvars, map(self.constant, consts), strict=True))
        places |= dict(zip(program.invars, given, strict=True))
        for variable in program.invars:
            self.seen(places[variable], variable.aval)

        def place_of(atom: Any) -> int:
            if isinstance(atom, core.Literal):
                return self.constant(np.asarray(atom.val, atom.aval.dtype))  # type: ignore[attr-defined]
            return places[atom]

        operation: Any
        for operation in program.eqns:
            inner = _called(operation)
            reads = [place_of(atom) for atom in operation.invars]
            name = operation.primitive.name
            if inner is not None and _function_name(inner) in ("_dense_conv", "_strided_conv"):
                written = self.listed("conv", _alone(operation, inner), reads, operation.outvars, (0, 1, 2, 3))
            elif inner is not None:
                closed = _closed(inner)
                written = self.inlined(closed.jaxpr, closed.consts, reads)
            elif name in _LOOPS and not self.depends.isdisjoint(reads):
                raise ValueError(
                    f"expected a network without loops and branches, got the operation '{name}'; this attribution "
                    "propagates through operations that it must see"
                )
            else:
                written = self.listed(name, _applied(operation), reads, operation.outvars, _axes(operation))
            places |= dict(zip(operation.outvars, written, strict=True))
        return [place_of(atom) for atom in program.outvars]

    def seen(self, place: int, aval: Any) -> None:
        self.shapes[place] = tuple(aval.shape)
        if jnp.issubdtype(aval.dtype, jnp.floating):
            self.floating.add(place)

    def listed(self, name: str, apply: Callable, reads: Sequence[int], results: Sequence[Any], axes) -> list[int]:
        """Lists an operation as a step of its kind; where its results are."""
        written = self.fresh(len(results))
        for place, variable in zip(written, results, strict=True):
            self.seen(place, variable.aval)
        moving = tuple(order for order, place in enumerate(reads) if place in self.depends & self.floating)
        if name == "max" and len(moving) == 1:
            apply = _rectified(moving[0])
        step = Step(name, "other", apply, tuple(reads), tuple(written), moving, axes)
        if not self.depends.isdisjoint(reads):
            self.depends.update(written)
            step = self.fused(step) or step._replace(kind=self.kind_of(step))
        if self.floating.isdisjoint(written):
            step = step._replace(moving=())
        for place in written:
            self.writers[place] = len(self.steps)
        self.steps.append(step)
        return written

    def kind_of(self, step: Step) -> Kind:
        name, several = step.name, len(step.moving) > 1
        same = step.moving != () and self.shapes[step.reads[step.moving[0]]] == self.shapes[step.writes[0]]
        if name in _PRODUCTS:
            return "bilinear" if several else "product"
        if name in _SUMS:
            return "affine" if not several and same and len(step.reads) > 1 else "linear"
        if name == "mul" or (name == "div" and 1 in step.moving and several):
            return "bilinear" if several else "affine" if same else "linear"
        if name == "div" and step.moving == (0,):
            return "affine" if same else "linear"
        if name == "select_n" or name in _CHOICES or (several and name in ("max", "min")):
            # On a condition that does not depend on the image numbers are but moved.
            return "moved" if name == "select_n" and step.reads[0] not in self.depends else "choice"
        if name in _MOVES:
            return "moved" if len(step.moving) == sum(place in self.depends for place in step.reads) else "other"
        if not several and same and (name in _CURVES or name in ("max", "div")):
            return "rectifier" if name == "max" else "curve"
        return "other"

    def fused(self, step: Step) -> Step | None:
        """The step and those before it as one function of each number of one array, where they are that together."""
        if step.name not in _ELEMENTWISE - _SUMS - {"convert_element_type"} or step.name in _CONDITIONS:
            return None
        frontier = self.depends.intersection(step.reads)
        if len(frontier) == 1 and len(step.moving) == 1 and step.name != "select_n":
            return None
        inside = [step]
        while len(frontier) > 1 or not frontier <= self.floating:
            latest = max(frontier, key=lambda place: self.writers.get(place, -1))
            if latest not in self.writers or self.steps[self.writers[latest]].name not in _ELEMENTWISE:
                return None
            before = self.steps[self.writers[latest]]
            inside.append(before)
            frontier = (frontier - {latest}) | self.depends.intersection(before.reads)
        (root,) = frontier
        if self.shapes[root] != self.shapes[step.writes[0]]:
            return None
        written = {place for one in inside for place in one.writes}
        others = [place for place in dict.fromkeys(r for one in inside for r in one.reads) if place not in written]
        reads = (root, *(place for place in others if place != root))

        def apply(*given):
            values = dict(zip(reads, given, strict=True))
            for one in sorted(inside, key=lambda one: one.writes):
                values |= dict(zip(one.writes, one.apply(*(values[place] for place in one.reads)), strict=True))
            return [values[step.writes[0]]]

        # Of one operation alone, it is a square.
        return Step(step.name, "rectifier" if len(inside) > 1 else "curve", apply, reads, step.writes, (0,))


def _rectified(moving: int) -> Callable[..., list[Array]]:
    """The larger of a number and a constant, flat where they are equal, as `jax.nn.relu` and PyTorch's."""

    def apply(*given):
        number, constant = given[moving], given[1 - moving]
        return [jnp.where(number <= constant, jnp.asarray(constant, number.dtype), number)]

    return apply


def _applied(operation: Any) -> Callable[..., Sequence[Array]]:
    def apply(*given):
        found = operation.primitive.bind(*given, **operation.params)
        return found if operation.primitive.multiple_results else [found]

    return apply


def _alone(operation: Any, inner: Any) -> Callable[..., Sequence[Array]]:
    """An operation that calls a program, with derivatives of its own; those of the program itself may be slow."""
    ends = {"invars": operation.invars, "outvars": operation.outvars}
    return core.jaxpr_as_fun(_closed(_closed(inner).jaxpr.replace(constvars=[], eqns=[operation], **ends)))


def _called(operation: Any) -> Any:
    """The program of an operation that only calls it, None of any other."""
    if operation.primitive.name in _LOOPS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = operation.params.get(name)
        known = isinstance(found, core.Jaxpr | core.ClosedJaxpr)
        if known and len(_closed(found).jaxpr.invars) == len(operation.invars):
            return found
    return None


def _closed(program: Any) -> Any:
    return program if isinstance(program, core.ClosedJaxpr) else core.ClosedJaxpr(program, ())


def _function_name(program: Any) -> str:
    return str(getattr(_closed(program).jaxpr.debug_info, "func_name", ""))


def _axes(operation: Any) -> tuple[int, ...]:
    """`Step.axes` of an operation."""
    if operation.primitive.name == "transpose":
        return tuple(operation.params["permutation"])
    if operation.primitive.name != "conv_general_dilated":
        return ()
    batch, channels, *spatial = operation.params["dimension_numbers"].out_spec
    return (batch, *spatial, channels) if len(spatial) == 2 else ()
