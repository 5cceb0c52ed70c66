"""What every experiment does around its work: prepare the backend, show progress, end well."""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import logging
import math
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import absl.logging
from absl import app, flags

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
flags.DEFINE_bool("tensorboard", False, "Write training curves as TensorBoard event files into the run's directory.")
flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, for a run of several processes.")
flags.DEFINE_integer("num_processes", None, "Processes in all, one a host.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "This process, from 0; only 0 writes results.", lower_bound=0)
flags.register_validator(
    "checkpoint_every",
    lambda text: re.fullmatch(r"\d+[ms]?", text) is not None and int(text.rstrip("ms")) > 0,
    "expected a positive number of minutes (10m), seconds (90s) or steps (500)",
)

detail = logging.getLogger("robgrad")
_COMPILING = "/jax/core/compile/"
_compiling = 0.0
_asked_to_stop = threading.Event()
_waiting = 0


class Stopped(BaseException):
    """SIGTERM or Ctrl-C arrived; training that saves ends its segment first."""


def _on_signal(number: int, frame) -> None:
    del frame
    _asked_to_stop.set()
    if not _waiting:
        raise Stopped(number)


@contextlib.contextmanager
def patiently() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and Ctrl-C wait; whoever asks the yielded function may end early, and the end stops the run.

    Orbax must not be interrupted: its threads would go on without us.
    """
    global _waiting
    _waiting += 1
    try:
        yield _asked_to_stop.is_set
    finally:
        _waiting -= 1
    if _asked_to_stop.is_set() and not _waiting:
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

    if FLAGS.tensorboard and not importlib.util.find_spec("tensorboardX"):
        raise flags.IllegalFlagValueError("--tensorboard: needs tensorboardX, from the extra '.[tensorboard]'")
    jax.monitoring.register_event_duration_secs_listener(_log_compilation)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "robgrad" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX keeps what took a second; a run has hundreds of smaller programs, which add up.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
    # JAX's own service would take SIGTERM from us.
    jax.config.update("jax_enable_preemption_service", False)
    if any(flag is not None for flag in (FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)):
        _join(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
    elif importlib.util.find_spec("libtpu") and os.environ.get("JAX_PLATFORMS") in (None, "", "tpu"):
        # On Cloud TPU, JAX finds the other hosts of a slice; elsewhere it says that it cannot.
        with contextlib.suppress(ValueError, RuntimeError):
            jax.distributed.initialize()


def _log_compilation(event: str, duration_secs: float, **_) -> None:
    global _compiling
    if event.startswith(_COMPILING):
        _compiling += duration_secs
    if event == f"{_COMPILING}backend_compile_duration" and duration_secs > 0.5:
        detail.info("compiled, or read from the cache, in %.1f s", duration_secs)


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


@contextlib.contextmanager
def progress(stage: str, events: Path | None = None, names: Sequence[str] = ()) -> Iterator[Callable]:
    """Yields a reporter for `training.fit`: one line, rewritten on a terminal, else once a minute and at the end.

    With `-v` every report is a line of the log; with `--tensorboard` its metrics go to event files in `events`, a
    curve for each of the stack's `names`.
    """
    import jax

    terminal = sys.stderr.isatty()
    created = began = last = time.monotonic()
    first, open_line = 0, False
    writer: Any = None
    if FLAGS.tensorboard and events is not None and not jax.process_index():
        from tensorboardX import SummaryWriter

        writer = SummaryWriter(str(events))

    def report(done) -> None:
        nonlocal last, first, began, open_line
        if jax.process_index():
            return
        now = time.monotonic()
        if not first:
            # The first segment holds the compilation, so the rate counts from its end.
            first, began = done.step, now
        for metric, values in done.metrics.items() if writer else ():
            for name, value in zip(names, values, strict=True):
                writer.add_scalar(f"{metric}/{name}", float(value), done.step)
        rate = (done.step - first) / (now - began) if now > began else 0.0
        finished = done.step == done.steps
        left = f"{(done.steps - done.step) / rate:.0f} s left" if rate else "estimating time left"
        left = f"took {now - created:.0f} s" if finished else left
        speed = f", {rate:.3g} steps/s" if rate else ""
        values = "".join(f", {name} {_span(metric)}" for name, metric in done.metrics.items())
        line = f"{stage}: epoch {done.epoch:.1f} of {done.epoch * done.steps / done.step:.0f}{values}{speed}, {left}"
        detail.info("%s", line)
        if terminal or finished or now - last > 60:
            last, open_line = now, terminal and not finished
            print(f"\r{line}\033[K" if terminal else line, end="" if open_line else "\n", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if open_line:
            print(file=sys.stderr)
        if writer:
            writer.close()


def counted(blocks: Sequence, stage: str) -> Iterator[tuple[int, Any]]:
    """`enumerate` of the blocks of a stage, with its progress."""
    with progress(stage) as report:
        for block, rows in enumerate(blocks):
            yield block, rows
            report(
                types.SimpleNamespace(step=block + 1, steps=len(blocks), epoch=(block + 1) / len(blocks), metrics={})
            )


def peak_memory() -> int:
    """The most bytes that this process held at a time."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says on Linux begins with what the parent held when it started this process.
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _span(values) -> str:
    low, high = float(min(values)), float(max(values))
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def run(main: Callable[[], None]) -> None:
    """Runs an experiment; what the user can mend ends in one line and exit status 1."""

    def guarded(arguments: list[str]) -> None:
        if len(arguments) > 1:
            app.usage(shorthelp=True, detailed_error=f"unexpected argument '{arguments[1]}'", exitcode=1)
        # Detail is ours alone: the libraries' would drown it.
        detail.setLevel(logging.INFO if FLAGS["verbosity"].present and FLAGS.verbosity >= 1 else logging.WARNING)
        if not FLAGS["verbosity"].present or FLAGS.verbosity == 1:
            absl.logging.set_verbosity(absl.logging.WARNING)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _on_signal)
        try:
            prepare()
            from robgrad.datasets import DataError
            from robgrad.runs import RunError
            from robgrad.training import DivergedError, StoppedError

            began = time.monotonic()
            try:
                main()
                took = time.monotonic() - began
                detail.info("tracing and compiling took %.1f s of %.1f s", _compiling, took)
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

    # absl's own -v wants a number; alone it means detail.
    arguments = [
        "--verbosity=1" if one == "-v" and not after[:2].lstrip("-").isdigit() else one
        for one, after in itertools.pairwise([*sys.argv, ""])
    ]
    app.run(guarded, arguments)
