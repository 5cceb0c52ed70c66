"""What every experiment does around its work: prepare the backend, show progress, end well."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

# Only for releases it was tried on: an XLA that does not know the flag refuses to start.
_FAST_CPU_FLAGS = {"0.10.2": ("--xla_cpu_experimental_ynn_fusion_type=dot",)}

flags.DEFINE_string("workdir", None, "Directory of this run. Default: one in runs/, named after what is run.")
flags.DEFINE_enum(
    "matmul_precision",
    "float32",
    ["float32", "tensorfloat32", "bfloat16"],
    "Precision of matrix products and convolutions where the device has a faster one than float32.",
)


def prepare() -> None:
    """Sets what JAX reads when it starts: a host device a core, fast CPU kernels, a compilation cache.

    Never against what the user has set in `XLA_FLAGS` or `JAX_COMPILATION_CACHE_DIR`.
    """
    wanted = [f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}"]
    wanted += _FAST_CPU_FLAGS.get(importlib.metadata.version("jaxlib"), ())
    given = os.environ.get("XLA_FLAGS", "")
    missing = [flag for flag in wanted if flag.split("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()

    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "robgrad" / "xla"))
    jax.config.update("jax_default_matmul_precision", flags.FLAGS.matmul_precision)


def environment() -> dict[str, str]:
    """Where a run takes place: versions, devices and, in a checkout, the commit."""
    import jax

    packages = ("robgrad", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    devices = jax.devices()
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        **versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit,
    }


def progress(stage: str) -> Callable:
    """A reporter for `training.fit`: one line, rewritten on a terminal, else written once a minute and at the end."""
    terminal = sys.stderr.isatty()
    created = began = last = time.monotonic()
    first = 0

    def report(done) -> None:
        nonlocal last, first, began
        now = time.monotonic()
        if not first:
            # The first segment holds the compilation, so the rate counts from its end.
            first, began = done.step, now
        finished = done.step == done.steps
        if not (terminal or finished or now - last > 60):
            return
        last = now
        rate = (done.step - first) / (now - began) if now > began else 0.0
        left = f"{(done.steps - done.step) / rate:.0f} s left" if rate else "estimating time left"
        left = f"took {now - created:.0f} s" if finished else left
        values = "".join(f", {name} {_span(metric)}" for name, metric in done.metrics.items())
        line = f"{stage}: epoch {done.epoch:.1f} of {done.epoch * done.steps / done.step:.0f}{values}, {left}"
        print(f"\r{line}\033[K" if terminal else line, end="\n" if finished or not terminal else "", file=sys.stderr)

    return report


def _span(values) -> str:
    low, high = float(min(values)), float(max(values))
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def run(main: Callable[[], None]) -> None:
    """Runs an experiment; what the user can mend ends in one line and exit status 1."""

    def guarded(arguments: list[str]) -> None:
        if len(arguments) > 1:
            app.usage(shorthelp=True, detailed_error=f"unexpected argument '{arguments[1]}'", exitcode=1)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        prepare()
        from robgrad.checkpoints import RunError
        from robgrad.datasets import DataError
        from robgrad.training import DivergedError

        try:
            main()
        except (flags.Error, RunError, DataError, DivergedError) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")
        except KeyboardInterrupt:
            sys.exit("interrupted: start the same command again")

    app.run(guarded)
