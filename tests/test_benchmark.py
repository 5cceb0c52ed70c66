"""The benchmark's contenders, peers included, do equal work; nothing is asserted of its times."""

import importlib
import json
from types import SimpleNamespace

import jax
import pytest

import experiments.benchmark.__main__ as benchmark
from experiments.benchmark import contest, scale, suites
from robgrad import networks

PEERS = {
    "attack": {"PyTorch eager", "PyTorch channels-last", "torchattacks", "foolbox (PyTorch)", "foolbox (JAX)", "ART"},
    "train": {"PyTorch eager", "PyTorch channels-last"},
    "retrain": {"PyTorch eager", "PyTorch channels-last", "torch.func stack"},
    "gradients": {"PyTorch eager", "PyTorch channels-last", "Captum"},
    "robustness": {"AutoAttack (PyTorch)", "torchattacks"},
    "attributions": {"Captum", "sparse solver"},
}
OURS = {"robgrad, Python loop", "robgrad, plain lax"}


@pytest.fixture
def in_process(monkeypatch):
    """Contenders work in this process, each once, in place of one of its own, which imports everything anew."""
    kept = {
        name: getattr(jax.config, name) for name in ("jax_enable_compilation_cache", "jax_default_matmul_precision")
    }

    def contender(file, program):
        module, variant = program.split()
        values = {}

        def serve(builders, long=False):
            values.update((name, [float(value) for value in build()()]) for name, build in builders.items())

        monkeypatch.setattr(contest, "serve", serve)
        importlib.import_module(f"experiments.benchmark.{module}").main(str(file), variant)
        nothing = dict.fromkeys(values, 0.0)
        return SimpleNamespace(values=values, compilation=nothing, take=lambda task: 1.0, end=lambda: 0)

    monkeypatch.setattr(benchmark, "contender", contender)
    yield
    for name, value in kept.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("suite", [*PEERS, "loops"])
def test_every_contender_does_the_same_work(suite, in_process):
    """What each gives equals ours: losses after an attack, after training, norms of gradients, robust accuracy."""
    peers = ("eager", "channels_last", "func_stack", "torchattacks", "foolbox", "foolbox_jax", "art", "captum")
    chosen = benchmark.Wanted(("digits",), (suite,), (*peers, "pyautoattack"), 1, True, "digits", "", "float32")
    rows = list(benchmark.compare(chosen, suite, "digits", 1.0))
    assert {row["variant"] for row in rows} >= {"robgrad", *PEERS.get(suite, OURS)}
    assert all(row["equal_work"] for row in rows if "bfloat16" not in row["variant"]), rows
    assert {row["suite"] for row in benchmark.against_the_best(rows)} == {suite} & {*PEERS}


def test_contenders_in_processes_of_their_own(tmp_path, run):
    arguments = ["--quick", "--networks=digits", "--suites=gradients,devices,data", "--peers=eager"]
    printed, _ = run("benchmark", *arguments, f"--workdir={tmp_path}")
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    expected = {"robgrad", "PyTorch eager", "two processes", "one device, XLA's defaults"}
    assert {row["variant"] for row in rows} >= expected, printed
    assert all(row["equal_work"] for row in rows if row["suite"] != "data" and "bfloat16" not in row["variant"]), (
        printed
    )
    assert (tmp_path / "speed.svg").exists()


def test_a_contender_that_gives_something_else_is_named(capsys):
    assert benchmark.is_equal("attack", "digits", "PGD", "peer", [1.0], [1.001])
    assert not benchmark.is_equal("attack", "digits", "PGD", "peer", [0.5], [1.0])
    assert "peer gave 0.5, robgrad 1" in capsys.readouterr().out


def test_growth_is_the_exponent_that_was_put_in():
    def rows(axis, power):
        sizes = (1, 4, 16, 64)
        whole = {"suite": "scale", "task": axis, "compile_seconds": 2.0}
        # What a call costs at any size hides the growth of the small ones.
        return [whole | {"variant": str(n), "ms": 3 + 100 * n**power, "memory_mib": 500 + 0 * n} for n in sizes]

    found = scale.growth([*rows("pixels", 1.0), *rows("images analysed", 2.0), *rows(scale.DEVICES, 0.0)])
    assert [round(row["time_exponent"], 2) for row in found] == [1.0, 2.0, 0.0]
    assert [row["as_wanted"] for row in found] == ["met", "**missed**", "met"]
    assert all(abs(row["memory_exponent"]) < 1e-9 for row in found)


@pytest.mark.parametrize("axis", ["pixels", "images analysed"])
def test_what_grows_gives_a_number(axis):
    (value,) = scale.AXES[axis].build(64)()
    assert 0 < value < 10


def test_operations_are_counted_as_by_hand():
    # 3x3 kernels, 1 to 16 and 16 to 32 channels on 64 pixels; dense 16 * 32 to 64, 64 to 10.
    expected = 2 * (64 * 9 * 16 + 64 * 9 * 16 * 32 + 512 * 64 + 640)
    assert suites.forward_flops(networks.digits_cnn(), (8, 8, 1)) == expected
