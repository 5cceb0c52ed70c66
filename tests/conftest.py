"""Two host devices, so that every test of a mesh runs on a laptop; a compilation cache for the suite."""

import gc
import importlib.metadata
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Most of the suite is compiling, here and in the programs that tests start: machine code need not be fast, and the
# older of two ways to emit it takes a third of the time. Later jaxlibs have one alone, and do not know the flag.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2"
    + " --xla_cpu_use_fusion_emitters=false" * (importlib.metadata.version("jaxlib") == "0.10.2"),
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# Two workers share two cores: PyTorch's and BLAS's threads would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import numpy as np
import pytest

from robgrad import data as data_sets

ROOT = Path(__file__).parent.parent
# What programs are told of it, which choose the number of devices themselves.
QUICK = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "emitters" in flag)
jax.config.update("jax_default_matmul_precision", "float32")


# A process may have some 65,000 memory maps; a compiled program takes several.
MOST_MAPS = 15_000


# Files of some two minutes and more, whatever their number of tests: last, one would leave a worker without work.
LONG = ("notebooks", "harness", "hosts", "readme", "benchmark", "edges", "checkpoints", "roles", "roar_kar")
LONG += ("manifold_distance", "neighbours", "shapes", "recipes", "auto_attack", "known_manifold", "examine")


def pytest_collection_modifyitems(items):
    """The longest files first."""
    place = {f"test_{name}": index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Programs that one module compiled are of no use to the next."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def forget_many_programs():
    """A process that keeps every program it compiled runs out of memory maps in the end, and crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def optimise():
    """Machine code as fast as a user's: long attacks take 40 times as long otherwise."""
    kept = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", kept)


# From here on in a module; in one test.
optimised = pytest.fixture(scope="module")(optimise)
optimised_here = pytest.fixture(optimise)


@pytest.fixture(scope="session")
def cache_dir():
    """Shared by the experiments that tests start, in all of pytest's workers, so that only the first compiles."""
    path = Path(tempfile.gettempdir()) / f"robgrad-test-cache-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def start(cache_dir):
    """Starts an experiment as a user would: `start(name, *arguments)`, a process whose output is piped."""

    def start(experiment, *arguments, before=(), **variables):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache_dir), "XLA_FLAGS": QUICK, **variables}
        command = [*before, sys.executable, "-m", f"experiments.{experiment}", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    return start


@pytest.fixture(scope="session")
def run(start):
    """Runs an experiment to its end, which must come with `status`; returns what it printed and what it said."""

    def run(experiment, *arguments, status=0, **options):
        process = start(experiment, *arguments, **options)
        printed, said = process.communicate(timeout=900)
        assert process.returncode == status, printed + said
        assert "Traceback" not in said
        return printed, said

    return run


@pytest.fixture
def refused(cache_dir, monkeypatch, capsys):
    """Runs an experiment in this process, which must refuse before it works; returns the one line that it says."""

    def refused(experiment, *arguments):
        monkeypatch.delitem(sys.modules, f"experiments.{experiment}", raising=False)
        monkeypatch.setattr(sys, "argv", [experiment, *map(str, arguments)])
        # A program sets these for its process; here they are put back.
        for name, value in {
            "XLA_FLAGS": os.environ["XLA_FLAGS"],
            "JAX_COMPILATION_CACHE_DIR": str(cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }.items():
            monkeypatch.setenv(name, value)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(f"experiments.{experiment}", run_name="__main__")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        line = str(ended.value)
        assert line.startswith("error: ")
        assert "\n" not in line
        return line + capsys.readouterr().err

    return refused


@pytest.fixture(scope="session")
def digits() -> data_sets.Dataset:
    return data_sets.load("digits")


@pytest.fixture(scope="session")
def colour_file(tmp_path_factory):
    """A set of another size than any that the paper has: 16x16 colour, four classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 160)
    images = generator.integers(0, 120, (160, 16, 16, 3), dtype=np.uint8)
    images[np.arange(160), 4 * labels + 1, 2:14] = 255
    parts = {"train_images": images[:120], "train_labels": labels[:120]}
    path = tmp_path_factory.mktemp("data") / "colour.npz"
    np.savez(path, **parts, test_images=images[120:], test_labels=labels[120:])
    return path


@pytest.fixture
def in_a_line():
    """Checks that a call is refused in one line."""

    def check(call, message):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value).strip()

    return check
