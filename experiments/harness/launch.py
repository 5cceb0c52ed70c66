"""What surrounds every program's work: the backend prepared, signals heeded, a good end."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import absl.logging
from absl import flags as absl_flags

from experiments.harness.settings import options
from experiments.harness.settings.flags import Flags
from robgrad import backend

STOPPED = 75  # EX_TEMPFAIL: what was asked for is not done yet, try again.
# Only for releases it was tried on: an XLA that does not know the flag refuses to start.
FAST_CPU_FLAGS = {
    "0.10.2": ("--xla_cpu_experimental_ynn_fusion_type=individual_dot,individual_convolution",),
    # Without --xla_cpu_experimental_onednn_custom_call, which is wrong for some functions: `compiling` guards its use.
    "0.12.0.1": ("--xla_cpu_experimental_ynn_fusion_type=individual_dot",),
}

detail = logging.getLogger("robgrad")
# Seconds that a process waits for the first one to answer: as long as JAX would, which then ends without a line.
_PATIENCE = 300.0
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


def prepare(values: absl_flags.FlagValues) -> None:
    """Sets what JAX reads when it starts: a host device a core, fast CPU kernels, a compilation cache, its hosts.

    Never against what the user has set in `XLA_FLAGS` or `JAX_COMPILATION_CACHE_DIR`.
    """
    jaxlib = importlib.metadata.version("jaxlib")
    os.environ["XLA_FLAGS"] = options.host_flags(jaxlib, backend.GIVEN, FAST_CPU_FLAGS)

    import jax

    if values.tensorboard and not importlib.util.find_spec("tensorboardX"):
        raise absl_flags.IllegalFlagValueError("--tensorboard: needs tensorboardX, from the extra '.[tensorboard]'")
    jax.monitoring.register_event_duration_secs_listener(_log_compilation)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "robgrad" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX keeps what took a second; a run has hundreds of smaller programs, which add up.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # JAX's own service would take SIGTERM from us.
    jax.config.update("jax_enable_preemption_service", False)
    joined = (values.coordinator_address, values.num_processes, values.process_id)
    if any(flag is not None for flag in joined):
        _join(*joined)
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
        raise absl_flags.IllegalFlagValueError(
            "expected --coordinator_address, --num_processes and --process_id together, the last below the second, got "
            f"{address}, {processes} and {process}"
        )
    if not re.fullmatch(r".+:\d+", address):
        raise absl_flags.IllegalFlagValueError(f"--coordinator_address: expected host:port, got '{address}'")
    if process:
        _await(address)
    try:
        jax.distributed.initialize(address, processes, process)
    except (RuntimeError, ValueError) as error:
        raise absl_flags.IllegalFlagValueError(f"--coordinator_address={address}: cannot join ({error})") from error


def _await(address: str) -> None:
    """Returns once process 0 answers at an address; what JAX does where none does is to abort the process."""
    host, port = address.rsplit(":", 1)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > until:
                raise absl_flags.IllegalFlagValueError(
                    f"--coordinator_address={address}: nothing answered there for {_PATIENCE:.0f} s ({error}); "
                    "start the process with --process_id=0 on that host"
                ) from error
        time.sleep(0.5)


def width() -> int:
    """Characters in a line of the terminal; 80 where there is none."""
    return max(shutil.get_terminal_size().columns, 40)


def show(*lines: str) -> None:
    """Prints, in the first process only."""
    import jax

    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)


def environment() -> dict[str, str]:
    """Where a run takes place: versions, processor, devices and, in a checkout, the commit."""
    import jax

    import robgrad
    from robgrad import compiling

    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    devices = jax.devices()
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "robgrad": robgrad.__version__,
        **versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "convolutions": compiling.whose(),
        "commit": commit,
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    told = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", told.read_text()) if told.exists() else []
    return names[0] if names else platform.processor() or "unknown"


def peak_memory() -> int:
    """The most bytes that this process held at a time."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says on Linux begins with what the parent held when it started this process.
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def program(main: Callable[[Flags], None], given: Flags, arguments: Sequence[str] | None = None) -> None:
    """Runs a program; what the user can mend ends in one line and exit status 1.

    Args:
      main: what it does, given its flags.
      given: its flags, not read yet.
      arguments: the command line; this process's where None.
    """
    from experiments.harness.settings.config import ConfigError

    try:
        given.parse(sys.argv if arguments is None else arguments)
        # Detail is ours alone: the libraries' would drown it.
        logging.basicConfig(format="%(message)s")
        if given.values.verbose and given.values.quiet:
            raise absl_flags.IllegalFlagValueError("--quiet: expected without --verbose, which asks for the reverse")
        levels = {"verbose": logging.INFO, "quiet": logging.ERROR}
        asked = next((level for name, level in levels.items() if given.values[name].value), logging.WARNING)
        detail.setLevel(asked)
        absl.logging.set_verbosity(absl.logging.WARNING)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _on_signal)
        prepare(given.values)
        from robgrad.data import DataError
        from robgrad.runs import RunError
        from robgrad.training import DivergedError, StoppedError

        began = time.monotonic()
        try:
            main(given)
            detail.info("tracing and compiling took %.1f s of %.1f s", _compiling, time.monotonic() - began)
        except (RunError, DataError, DivergedError) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")
        except StoppedError as error:
            print(f"{error}, and saved: start the same command again to go on", file=sys.stderr)
            sys.exit(STOPPED)
    except (absl_flags.Error, ConfigError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except Stopped:
        print("stopped: start the same command again to go on from what is saved", file=sys.stderr)
        sys.exit(STOPPED)
