"""What every experiment does around its work: prepare the backend, show progress, end well."""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags, logging

FLAGS = flags.FLAGS
STOPPED = 75  # EX_TEMPFAIL: what was asked for is not done yet, try again.
# Only for releases it was tried on: an XLA that does not know the flag refuses to start.
_FAST_CPU_FLAGS = {"0.10.2": ("--xla_cpu_experimental_ynn_fusion_type=dot",)}

flags.DEFINE_integer("seed", 0, "Seed of everything random.", lower_bound=0)
flags.DEFINE_string("workdir", None, "Directory of this run. Default: one in runs/, named after what is run.")
flags.DEFINE_enum(
    "matmul_precision",
    "float32",
    ["float32", "tensorfloat32", "bfloat16"],
    "Precision of matrix products and convolutions where the device has a faster one than float32.",
)


flags.DEFINE_string(
    "checkpoint_every", "10m", "How often training saves: minutes (10m), seconds (90s) or steps (500), at segment ends."
)
flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, for a run of several processes.")
flags.DEFINE_integer("num_processes", None, "Processes in all, one a host.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "This process, from 0; only 0 writes results.", lower_bound=0)
flags.register_validator(
    "checkpoint_every",
    lambda text: re.fullmatch(r"\d+[ms]?", text) is not None and int(text.rstrip("ms")) > 0,
    "expected a positive number of minutes (10m), seconds (90s) or steps (500)",
)

_asked_to_stop = threading.Event()
_can_wait = False


class Stopped(BaseException):
    """SIGTERM or Ctrl-C arrived; training that saves ends its segment first."""


def _on_signal(number: int, frame) -> None:
    del frame
    _asked_to_stop.set()
    if not _can_wait:
        raise Stopped(number)


@contextlib.contextmanager
def patiently() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and Ctrl-C wait until the yielded function was asked; then they stop the run."""
    global _can_wait
    _can_wait = True
    try:
        yield _asked_to_stop.is_set
    finally:
        _can_wait = False
    if _asked_to_stop.is_set():
        raise Stopped


def checkpoint_interval() -> tuple[float, int]:
    """The flag as `minutes` and `steps` of `training.Checkpoints`."""
    text = FLAGS.checkpoint_every
    if text.isdigit():
        return math.inf, int(text)
    return int(text[:-1]) / (1 if text.endswith("m") else 60), 0


def prepare() -> None:
    """Sets what JAX reads when it starts: a host device a core, fast CPU kernels, a compilation cache, its hosts.

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
    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
    # JAX's own service would take SIGTERM from us.
    jax.config.update("jax_enable_preemption_service", False)
    if any(flag is not None for flag in (FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)):
        _join(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
    elif importlib.util.find_spec("libtpu") and os.environ.get("JAX_PLATFORMS") in (None, "", "tpu"):
        # On Cloud TPU, JAX finds the other hosts of a slice; elsewhere it says that it cannot.
        with contextlib.suppress(ValueError, RuntimeError):
            jax.distributed.initialize()


def _join(address: str | None, processes: int | None, process: int | None) -> None:
    import jax

    if address is None or processes is None or process is None or process >= processes:
        raise flags.IllegalFlagValueError(
            "expected --coordinator_address, --num_processes and --process_id together, the last below the second, got "
            f"{address}, {processes} and {process}"
        )
    try:
        jax.distributed.initialize(address, processes, process)
    except (RuntimeError, ValueError) as error:
        raise flags.IllegalFlagValueError(f"--coordinator_address={address}: cannot join ({error})") from error


def show(*lines: str) -> None:
    """Prints, in the first process only."""
    import jax

    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)


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
        "matmul_precision": FLAGS.matmul_precision,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit,
    }


def progress(stage: str) -> Callable:
    """A reporter for `training.fit`: one line, rewritten on a terminal, else written once a minute and at the end."""
    import jax

    terminal = sys.stderr.isatty()
    created = began = last = time.monotonic()
    first = 0

    def report(done) -> None:
        nonlocal last, first, began
        if jax.process_index():
            return
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
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _on_signal)
        try:
            prepare()
            from robgrad.datasets import DataError
            from robgrad.runs import RunError
            from robgrad.training import DivergedError, StoppedError

            try:
                main()
            except (RunError, DataError, DivergedError) as error:
                sys.exit(f"error: {' '.join(str(error).split())}")
            except StoppedError as error:
                print(f"{error}, and saved: start the same command again to go on", file=sys.stderr)
                sys.exit(STOPPED)
        except flags.Error as error:
            sys.exit(f"error: {' '.join(str(error).split())}")
        except Stopped:
            print("stopped: start the same command again to go on from what is saved", file=sys.stderr)
            sys.exit(STOPPED)

    app.run(guarded)
