"""The benchmark's suites of whole programs, each a process of its own: start-up, and loading a data set."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.harness.pages.tables import Row
from robgrad import runs


def startup(rounds: int, quick: bool) -> Iterator[Row]:
    """Imports, against those of JAX, Flax and Optax; the digits experiment with a cold and a warm cache."""
    families = "import robgrad; [getattr(robgrad, name) for name in robgrad.__all__]"
    programs = {"jax": "import jax", "jax, flax, optax": "import jax, flax, optax", "robgrad": "import robgrad"}
    programs["robgrad, every family"] = families
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 + (1 if quick else rounds)):
        for name, program in programs.items():
            times[name].append(timed([sys.executable, "-c", program])[0])
    base = statistics.median(times["robgrad, every family"][1:])
    for name, every in times.items():
        median = statistics.median(every[1:])
        yield _row("startup", "-", "import", name, median) | {"ratio": median / base}
    small = ["--train_examples=200", "--epochs=1", "--standard_epochs=1", "--vae_gan_epochs=1", "--test_examples=40"]
    with tempfile.TemporaryDirectory() as directory:
        for state in ("cold", "warm"):
            command = [sys.executable, "-m", "experiments.manifold_distance", "-v", f"--workdir={directory}/{state}"]
            cache = {"JAX_COMPILATION_CACHE_DIR": f"{directory}/cache"}
            seconds, said = timed([*command, *(small if quick else [])], cache)
            compiling = float(re.findall(r"compiling took (\S+) s", said)[-1])
            row = _row("startup", "digits", "manifold_distance", f"{state} cache", seconds)
            yield row | {"compile_seconds": compiling, "ratio": compiling / seconds}


def loading(name: str) -> Iterator[Row]:
    """Loading a data set in a fresh process, from its own files and from the cache of decoded images."""
    given = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    program = (
        "import sys, time; from robgrad import data; began = time.perf_counter(); "
        "data.load(*sys.argv[1:]); print(time.perf_counter() - began)"
    )
    with tempfile.TemporaryDirectory() as directory:
        # The set's files under another roof, so that neither its cache nor the user's is touched.
        for path in Path(given).expanduser().glob(f"{name}/*/*"):
            if not path.name.startswith("robgrad-"):
                link = Path(directory, *path.parts[-3:])
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        for state in ("cold", "cached"):
            command = [sys.executable, "-c", program, name, directory]
            _, said = timed(command, {"XDG_CACHE_HOME": f"{directory}/cache"})
            yield _row("data", name, "load", state, float(said.split()[-1]))


def timed(command: Sequence[str], variables: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Runs a program; returns its seconds and all that it printed."""
    began = time.perf_counter()
    result = subprocess.run(command, env=os.environ | (variables or {}), capture_output=True, text=True)
    if result.returncode:
        raise runs.RunError(f"{' '.join(command[:3])}: {result.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - began, result.stderr + result.stdout


def _row(suite: str, network: str, task: str, variant: str, seconds: float) -> Row:
    return {"suite": suite, "network": network, "task": task, "variant": variant, "ms": 1000 * seconds}
