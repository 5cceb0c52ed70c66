"""The experiment as a user runs it: a whole small run, again, and everything it refuses."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = [
    *(
        "--train_examples=200",
        "--test_examples=30",
        "--epochs=3",
        "--standard_epochs=3",
        "--attack_steps=2",
        "--vae_gan_epochs=2",
    ),
    *("--analysis_steps=3", "--robust_steps=2", "--l2_epsilons=0.5,1", "--linf_epsilons=0.1", "--chunk=16"),
]
FIELDS = {
    *("network", "train_norm", "train_loss", "train_epsilon", "analysis_loss", "test_accuracy", "robust_accuracy"),
    *("attack_success", "median_distance", "mean_distance", "rescaled_mode", "clean_median_distance"),
    *("tangent_fraction", "tangent_fraction_chance", "transfer_median_distance", "transfer_attack_success"),
}


def run(*arguments, cache):
    command = [sys.executable, "-m", "experiments.manifold_distance", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_dir):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    result = run(f"--workdir={workdir}", *SMALL, cache=cache_dir)
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_leaves_results_and_figures(finished):
    workdir, printed = finished
    results = json.loads((workdir / "results.json").read_text())
    assert set(results) == {"experiment", "config", "environment", "rows"}
    assert results["experiment"] == "manifold_distance"
    rows = results["rows"]
    names = ["standard", "l2-xent-0.5", "l2-xent-1", "l2-cw-0.5", "l2-cw-1", "linf-xent-0.1", "linf-cw-0.1"]
    assert [row["network"] for row in rows] == names * 2
    assert [row["analysis_loss"] for row in rows] == ["xent"] * 7 + ["cw"] * 7
    assert all(set(row) >= FIELDS for row in rows)
    for row in rows:
        assert 0 <= row["robust_accuracy"] <= row["test_accuracy"] <= 1
        assert 0 < row["tangent_fraction_low"] <= row["tangent_fraction"] <= row["tangent_fraction_high"] <= 1
        assert row["tangent_fraction_chance"] == pytest.approx(10 / 64)
    with open(workdir / "results.csv") as file:
        assert [row["network"] for row in csv.DictReader(file)] == names * 2
    figures = {file.name for file in workdir.glob("*.png")}
    per_loss = ("densities", "attacked", "tangent_fraction")
    assert figures == {"vae_gan.png", "loss_gradients.png"} | {
        f"{f}_{loss}.png" for f in per_loss for loss in ("xent", "cw")
    }
    assert str(workdir) in printed
    assert all(name in printed for name in names)


def test_a_finished_run_is_not_run_again(finished, cache_dir):
    workdir, printed = finished
    before = {file: file.stat().st_mtime_ns for file in workdir.iterdir()}
    again = run(f"--workdir={workdir}", *SMALL, cache=cache_dir)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert again.stdout.splitlines()[:14] == printed.splitlines()[:14]
    assert before == {file: file.stat().st_mtime_ns for file in workdir.iterdir()}


def test_one_seed_gives_the_same_rows_to_the_bit(finished, tmp_path, cache_dir):
    workdir, _ = finished
    assert run(f"--workdir={tmp_path / 'second'}", *SMALL, cache=cache_dir).returncode == 0
    first, second = (json.loads((path / "results.json").read_text()) for path in (workdir, tmp_path / "second"))
    assert first["rows"] == second["rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=no_such_set"], "unknown data set 'no_such_set'"),
        (["--dataset=mnist", "--data_dir=/no/such/place"], "mnist: not found in /no/such/place"),
        (["--preset=huge"], "--preset=huge: value should be one of <quick|paper>"),
        (["--preset=paper"], "--preset=paper: expected --dataset to be one of"),
        (["--l2_epsilons=1,-2"], "--l2_epsilons=['1', '-2']: expected different finite numbers >= 0"),
        (["--l2_epsilons=1,x"], "expected different finite numbers >= 0"),
        (["--analysis_epsilon=-1"], "--analysis_epsilon=-1.0: expected a finite number >= 0"),
        (["--attack_steps=0"], "--attack_steps=0"),
        (["--epochs=many"], "--epochs=many"),
        (["--norms=l2,l7"], "expected some of l2, linf"),
        (["--train_examples=5000"], "--train_examples=5000: expected at most 1437"),
        (["--batch_size=300", "--train_examples=200"], "--batch_size=300: expected at most 200"),
        (["--learning_rate=1e38", *SMALL], "try a smaller learning rate"),
        (["digits"], "unexpected argument 'digits'"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, tmp_path, cache_dir):
    result = run(f"--workdir={tmp_path / 'run'}", *arguments, cache=cache_dir)
    assert result.returncode not in (0, None)
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_directory_of_another_configuration_is_refused(finished, cache_dir):
    workdir, _ = finished
    before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
    result = run(f"--workdir={workdir}", "--seed=7", *SMALL, cache=cache_dir)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "holds a run with seed = 0, asked for 7" in result.stderr
    assert before == {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
