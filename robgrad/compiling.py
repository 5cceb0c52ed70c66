"""How programs are compiled for a processor: with which convolutions, and what else makes their loops fast.

From release 0.11 on, jaxlib reaches oneDNN's convolutions on a CPU, which are faster than XLA's own. It also merges
them with what follows, and gets that wrong for some functions: in jaxlib 0.12.0.1 the gradient of SiLU after a
convolution is off by up to 45%. So a barrier is put behind every convolution of a program, through which nothing is
merged, and this is tried on a small network before it is relied upon.
"""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core
from jax.sharding import Mesh

from robgrad import backend

# Pixels beyond which YNNPACK's convolutions take two to four times as long by a kernel (measured: 8x8, 14x14), and
# training and AutoAttack far longer than their compilation.
LARGE = 100
_ONEDNN = "xla_cpu_experimental_onednn_custom_call"


def compiled(
    function: Callable, mesh: Mesh | None, *, pixels: int = 0, lasting: bool = False, **options
) -> jax.stages.Wrapped:
    """`jax.jit`, with what XLA should know of the devices that the program is for.

    On a CPU, loops that update in place get the analysis that finds it safe: without it, a loop of training copies its
    dense kernels in each turn. Convolutions are oneDNN's where `convolutions` says so; but a program that holds them
    cannot be kept in JAX's cache on disk, so where that is switched on, only programs that last have them. Where
    `XLA_FLAGS` choose YNNPACK's convolutions, each of them runs on one thread: faster where a device a core takes part,
    slower where fewer devices are to keep all cores busy, which get XLA's own.

    Args:
      function: to compile; it takes no keywords.
      mesh: its devices; None for one of them.
      pixels: of an image, for programs that differentiate by kernels: the window is the whole image then, which
        YNNPACK's convolutions are slow for where it is large.
      lasting: whether it runs far longer than it takes to compile.
      options: of `jax.jit`.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(function, **options)
    devices = len(mesh.local_devices) if mesh else 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted: dict[str, bool | str] = {"xla_cpu_copy_insertion_use_region_analysis": True}
    if "individual_convolution" in backend.flags() and (devices < cores or pixels > LARGE):
        wanted["xla_cpu_experimental_ynn_fusion_type"] = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    if (lasting or not _kept_on_disk() or _ONEDNN in backend.flags()) and convolutions() == "oneDNN":
        wanted[_ONEDNN] = True
        function = barred(function, options.get("static_argnums", ()))
    return jax.jit(function, compiler_options=wanted, **options)


def _kept_on_disk() -> bool:
    return bool(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]


@functools.cache
def convolutions() -> Literal["oneDNN", "XLA"]:
    """Whose convolutions `compiled` uses on a CPU: oneDNN's, where they are in reach and right here, or else XLA's.

    Tried once in a process (half a second): two convolutions with a SiLU between them, its gradients by both libraries,
    in float32 whatever precision is set. `XLA_FLAGS` with `--xla_cpu_experimental_onednn_custom_call=false` keep XLA's;
    where they ask for oneDNN's, `compiled` puts barriers into every program.
    """
    if jax.default_backend() != "cpu" or f"{_ONEDNN}=false" in backend.flags():
        return "XLA"
    # Whatever surrounds the first call: a trace of the caller's, a lower precision.
    with jax.ensure_compile_time_eval(), jax.default_matmul_precision("float32"):
        return "oneDNN" if _right_by_onednn() else "XLA"


def _right_by_onednn() -> bool:
    images = jnp.sin(jnp.arange(2 * 8 * 8 * 16, dtype=jnp.float32)).reshape(2, 8, 8, 16)
    kernels = jnp.cos(jnp.arange(2 * 3 * 3 * 16 * 16, dtype=jnp.float32)).reshape(2, 3, 3, 16, 16) / 12
    # What holds oneDNN's convolutions cannot be written to JAX's cache, which warns each time.
    warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry.*std::bad_alloc")
    gradients = jax.grad(_loss, argnums=(0, 1))
    try:
        fast = jax.jit(barred(gradients), compiler_options={_ONEDNN: True}).lower(images, kernels).compile()
        if "__onednn$conv" not in (fast.as_text() or ""):
            return False
        sure = jax.jit(gradients, compiler_options={_ONEDNN: False})
        pairs = zip(fast(images, kernels), sure(images, kernels), strict=True)
        off = max(float(jnp.abs(found - wanted).max() / jnp.abs(wanted).max()) for found, wanted in pairs)
    except Exception:  # Another release of JAX may know neither the option nor these forms: XLA's own do as well.
        return False
    return off < 1e-4


def _loss(images: Array, kernels: Array) -> Array:
    names = ("NHWC", "HWIO", "NHWC")
    for kernel in kernels:
        images = jax.nn.silu(lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=names))
    return jnp.sum(images**2)


def in_force() -> str:
    """Whose convolutions `compiled` uses, and the flags of XLA, in a line; starts JAX."""
    where = jax.default_backend()
    return f"{where}, jaxlib {jax.lib.__version__}: {whose()}, XLA_FLAGS='{backend.flags()}'"


def whose() -> str:
    """Whose convolutions `compiled` uses, in words; starts JAX."""
    if jax.default_backend() != "cpu":
        return "XLA's choice of convolutions"
    own = f"{convolutions()}'s convolutions"
    if own.startswith("oneDNN") and _kept_on_disk() and _ONEDNN not in backend.flags():
        own += " in programs that last, XLA's in others, which JAX's cache keeps"
    return own


def barred(function: Callable, static: int | Sequence[int] = ()) -> Callable:
    """A function whose convolutions the compiler merges with nothing that follows; for use within `jax.jit`.

    It is traced to its operations, and behind each convolution, in loops and branches as well, goes a
    `lax.optimization_barrier`: every value stays what it is. A function that is differentiated should be differentiated
    before, since the derivative's convolutions need barriers, too.

    Args:
      function: of arrays and pytrees of them.
      static: places of arguments that are no arrays, as `static_argnums` of `jax.jit`.
    """

    static = (static,) if isinstance(static, int) else static

    @functools.wraps(function)
    def run(*arguments):
        arrays = [argument for place, argument in enumerate(arguments) if place not in static]

        def of_arrays(*arrays):
            given = iter(arrays)
            return function(*(a if place in static else next(given) for place, a in enumerate(arguments)))

        traced, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        found = core.jaxpr_as_fun(_barred(traced, {}))(*jax.tree.leaves(arrays))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return run


def _barred(value, known: dict):
    """A parameter of an operation, with barriers in every program that it holds; itself where no convolution is."""
    if isinstance(value, core.ClosedJaxpr) and value.jaxpr is not value:  # From JAX 0.12 on the two are one class.
        inner = _barred(value.jaxpr, known)
        return value if inner is value.jaxpr else value.replace(jaxpr=inner)
    if isinstance(value, core.Jaxpr):
        if id(value) not in known:
            # The program is kept beside its answer, so that no other takes its identity.
            known[id(value)] = value, _of_operations(value, known)
        return known[id(value)][1]
    if type(value) in (tuple, list):
        inner = type(value)(_barred(part, known) for part in value)
        return value if all(new is old for new, old in zip(inner, value, strict=True)) else inner
    return value


def _of_operations(program: core.Jaxpr, known: dict) -> core.Jaxpr:
    fresh, operations, changed = core.gensym(), [], False
    for operation in program.eqns:
        inner = {name: _barred(value, known) for name, value in operation.params.items()}
        if any(inner[name] is not operation.params[name] for name in inner):
            operation, changed = operation.replace(params=inner), True
        operations.append(operation)
        if operation.primitive is lax.conv_general_dilated_p:
            before = [fresh(variable.aval) for variable in operation.outvars]
            barrier = core.new_jaxpr_eqn(before, operation.outvars, lax.optimization_barrier_p, {}, core.no_effects)
            operations[-1:], changed = [operation.replace(outvars=before), barrier], True
    return program.replace(eqns=operations) if changed else program
