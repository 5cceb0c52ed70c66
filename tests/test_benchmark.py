"""The benchmark's contenders, peers included, do equal work; nothing is asserted of its times."""

import json

from experiments.benchmark import suites
from experiments.benchmark.__main__ import is_equal
from robgrad import networks

PEERS = {
    "attack": {"PyTorch eager", "PyTorch channels-last", "torchattacks", "foolbox (PyTorch)", "foolbox (JAX)", "ART"},
    "train": {"PyTorch eager", "PyTorch channels-last"},
    "retrain": {"PyTorch eager", "PyTorch channels-last", "torch.func stack"},
    "gradients": {"PyTorch eager", "PyTorch channels-last", "Captum"},
    "robustness": {"AutoAttack (PyTorch)", "torchattacks"},
}


def test_every_peer_does_the_same_work(tmp_path, run):
    """Each starts, and what it gives equals ours: losses after an attack, after training, norms of gradients."""
    peers = "eager,channels_last,func_stack,torchattacks,foolbox,foolbox_jax,art,captum,pyautoattack"
    arguments = ["--quick", "--networks=digits", f"--suites={','.join(PEERS)}", f"--peers={peers}"]
    printed, _ = run("benchmark", *arguments, f"--workdir={tmp_path}")
    results = json.loads((tmp_path / "results.json").read_text())
    for suite, expected in PEERS.items():
        rows = [row for row in results["rows"] if row["suite"] == suite]
        assert {row["variant"] for row in rows} >= {"robgrad", *expected}, printed
        assert all(row["equal_work"] for row in rows if "bfloat16" not in row["variant"]), printed
    assert {row["suite"] for row in results["against_the_best"]} == {*PEERS}
    assert (tmp_path / "speed.png").exists()


def test_our_own_variants_give_the_same(tmp_path, run):
    arguments = ["--quick", "--networks=digits", "--suites=loops,devices,data", "--peers=", f"--workdir={tmp_path}"]
    run("benchmark", *arguments)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    variants = {row["variant"] for row in rows}
    assert variants >= {"robgrad, Python loop", "robgrad, plain lax", "two processes", "one device, XLA's defaults"}
    assert all(row["equal_work"] for row in rows if row["suite"] != "data")


def test_a_contender_that_gives_something_else_is_named(capsys):
    assert is_equal("attack", "digits", "PGD", "peer", [1.0], [1.001])
    assert not is_equal("attack", "digits", "PGD", "peer", [0.5], [1.0])
    assert "peer gave 0.5, robgrad 1" in capsys.readouterr().out


def test_operations_are_counted_as_by_hand():
    # 3x3 kernels, 1 to 16 and 16 to 32 channels on 64 pixels; dense 16 * 32 to 64, 64 to 10.
    expected = 2 * (64 * 9 * 16 + 64 * 9 * 16 * 32 + 512 * 64 + 640)
    assert suites.forward_flops(networks.digits_cnn(), (8, 8, 1)) == expected
