"""Sections 2.2, 3.2 and 3.3 as a user runs them, small."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats

SMALL = [
    *("--train_examples=200", "--test_examples=50", "--epochs=1", "--standard_epochs=2", "--attack_steps=2"),
    *(
        "--pgd_steps=2",
        "--attacked_examples=3",
        "--epsilons=3",
        "--norms=l2",
        "--percentiles=30,70",
        "--retraining_seeds=2",
    ),
    "--retraining_epochs=2",
]
FIELDS = {
    *("network", "train_norm", "train_loss", "train_epsilon", "test_accuracy", "robust_accuracy", "benchmark"),
    *("attribution", "percentiles", "curve", "curve_std", "score", "score_low", "score_high"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run("roar_kar", f"--workdir={workdir}", "--stack_size=13", *SMALL)[0]


def test_rows_curves_and_correlations(finished):
    workdir, printed = finished
    results = json.loads((workdir / "results.json").read_text())
    rows = results["rows"]
    networks = ["standard", "l2-xent-0.7", "l2-xent-1.3", "l2-xent-2"]
    # Random is retrained once, on the standard network's account.
    methods = ("gradient", "gradient_times_input", "random")
    expected = [
        (network, benchmark, method) for network in networks for benchmark in ("roar", "kar") for method in methods
    ]
    expected = [row for row in expected if row[0] == "standard" or row[2] != "random"]
    assert [(row["network"], row["benchmark"], row["attribution"]) for row in rows] == expected
    for row in rows:
        assert set(row) >= FIELDS
        assert len(row["curve"]) == len(row["curve_std"]) == len(row["percentiles"]) == 2
        assert row["score_low"] <= row["score"] <= row["score_high"]
        assert row["network_seed"] == 0
        assert row["score"] == pytest.approx(0.0, abs=1e-9) or row["attribution"] != "random"
    chosen = [row for row in rows if (row["benchmark"], row["attribution"]) == ("roar", "gradient")]
    one = next(c for c in results["correlations"] if (c["benchmark"], c["attribution"]) == ("roar", "gradient"))
    x, y = [row["train_epsilon"] for row in chosen], [row["score"] for row in chosen]
    assert one["linear"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert one["rank"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert one["linear_published"] == 0.9457
    # Kept 30% and removed 70% are one experiment, and so are 70% and 30%.
    assert [row["pixels_kept"] for row in results["audit"]] == [30.0, 70.0]
    assert all(row["difference_low"] <= row["difference"] <= row["difference_high"] for row in results["audit"])
    assert "72 retrainings of 4 networks, at most 13 in a stack" in printed


def test_the_stack_size_changes_no_curve_and_tradeoff_reads_the_same_run(finished, tmp_path, run):
    workdir, _ = finished
    shared = [f"--workdir={tmp_path / 'run'}", f"--networks_from={workdir}", *SMALL]
    run("roar_kar", *shared)
    first, second = (json.loads((path / "results.json").read_text())["rows"] for path in (workdir, tmp_path / "run"))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_allclose(one["curve"], two["curve"], atol=0.021)
    assert "retraining" not in run("tradeoff", *shared)[1]
    assert json.loads((tmp_path / "run" / "tradeoff.json").read_text())["means"]
    assert (tmp_path / "run" / "tradeoff.html").exists()
    figures = {path.name for path in (tmp_path / "run").glob("*.svg")}
    assert figures >= {"roar_curves.svg", "kar_strength_xent.svg", "roar_accuracy_xent.svg", "kar_accuracy_xent.svg"}


def test_the_boundary_turns_towards_the_data(tmp_path, run):
    arguments = [f"--workdir={tmp_path / 'toy'}", "--repeats=2", "--points=1500"]
    run("boundary_tilting", *arguments)
    results = json.loads((tmp_path / "toy" / "results.json").read_text())
    rows = results["rows"]
    assert [row["network"] for row in rows] == ["standard", "weak", "strong"]
    for field in ("displacement_angle", "boundary_angle"):
        assert rows[0][field] > rows[1][field] > rows[2][field]
    assert rows[0]["share_outside"] > rows[2]["share_outside"]
    assert all(row["train_accuracy"] > 0.99 for row in rows)
    assert len(results["claims"]) == 2
    assert (tmp_path / "toy" / "boundaries.svg").exists()
    assert "finished already" in run("boundary_tilting", *arguments)[0]


def test_what_a_resumed_run_has_is_known_by_name(finished, tmp_path, run):
    """A kept stack of other retrainings than its name says is done again, not taken by its count."""
    workdir, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for name in ("results.json", "measurements.npz"):
        (copy / name).unlink()
    first, second = sorted((copy / "retraining").glob("retraining-l2-xent-2-*.npz"))
    first.write_bytes(second.read_bytes())
    _, said = run("roar_kar", f"--workdir={copy}", "--stack_size=13", *SMALL)
    assert said.count("training retraining") == 1
    rows = [json.loads((path / "results.json").read_text())["rows"] for path in (workdir, copy)]
    assert rows[0] == rows[1]
