"""The whole experiment on one device, on eight, and in two processes of two devices each."""

import importlib.metadata
import json
import socket

import numpy as np
import pytest

from experiments.harness import launch

FAST = launch.FAST_CPU_FLAGS.get(importlib.metadata.version("jaxlib"), ())
RUN = [
    *("--norms=l2", "--train_losses=xent", "--l2_epsilons=0.5,1,2", "--analysis_losses=xent", "--chunk=16"),
    *("--train_examples=200", "--test_examples=20", "--epochs=2", "--standard_epochs=2", "--attack_steps=2"),
    *("--vae_gan_epochs=1", "--analysis_steps=2", "--pgd_steps=2", "--attacked_examples=3"),
]


@pytest.fixture(scope="session")
def begin(start):
    def begin(workdir, devices, *arguments):
        # One kind of convolution: else one device of two cores takes another than two or eight do.
        convolutions = " ".join(FAST).replace(",individual_convolution", "")
        flags = f"--xla_force_host_platform_device_count={devices} {convolutions}"
        return start("manifold_distance", f"--workdir={workdir}", *RUN, *arguments, XLA_FLAGS=flags)

    return begin


def finish(*processes):
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [printed for printed, _ in said]


def rows(workdir):
    return json.loads((workdir / "results.json").read_text())["rows"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, begin):
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    finish(begin(workdir, 1))
    return rows(workdir)


def close(ours, alone):
    """Sums over devices round differently, which Adam's first steps, near signs of the gradient, make visible."""
    for one, two in zip(ours, alone, strict=True):
        assert one["network"] == two["network"]
        for name in ("test_accuracy", "robust_accuracy"):
            assert one[name] == pytest.approx(two[name], abs=1e-4)
        for name in ("median_distance", "clean_median_distance"):
            np.testing.assert_allclose(one[name], two[name], rtol=2e-3)


def test_eight_devices_give_the_numbers_of_one(alone, tmp_path, begin):
    finish(begin(tmp_path / "run", 8))
    close(rows(tmp_path / "run"), alone)


def test_two_processes_give_the_numbers_of_one_and_the_first_writes_them(alone, tmp_path, begin):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = lambda index: begin(  # noqa: E731
        *(tmp_path / "run", 2, f"--coordinator_address={address}", "--num_processes=2"),
        *(f"--process_id={index}", "--shard_data"),
    )
    first, second = finish(joined(0), joined(1))
    close(rows(tmp_path / "run"), alone)
    assert "standard" in first
    assert "standard" not in second
