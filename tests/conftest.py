"""Two host devices, so that every test of a mesh runs on a laptop; a compilation cache for the suite."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import pytest

from robgrad import datasets

jax.config.update("jax_default_matmul_precision", "float32")


@pytest.fixture(scope="session")
def cache_dir():
    """Shared by the experiments that tests start, so that only the first compiles."""
    path = Path(tempfile.gettempdir()) / f"robgrad-test-cache-{os.getpid()}"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def digits() -> datasets.Dataset:
    return datasets.load("digits")
