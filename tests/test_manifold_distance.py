"""The experiment as a user runs it: a whole small run, again, and everything it refuses."""

import csv
import json
import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.harness.verdicts import modes

SMALL = [
    *(
        "--train_examples=200",
        "--test_examples=30",
        "--epochs=3",
        "--standard_epochs=3",
        "--attack_steps=2",
        "--vae_gan_epochs=2",
    ),
    *(
        "--analysis_steps=3",
        "--pgd_steps=2",
        "--attacked_examples=3",
        "--l2_epsilons=0.5,1",
        "--linf_epsilons=0.1",
        "--chunk=16",
    ),
]
FIELDS = {
    *("network", "train_norm", "train_loss", "train_epsilon", "analysis_loss", "test_accuracy", "robust_accuracy"),
    *("attack_success", "median_distance", "mean_distance", "rescaled_mode", "clean_median_distance"),
    *("tangent_fraction", "tangent_fraction_chance", "transfer_median_distance", "transfer_attack_success"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run("manifold_distance", f"--workdir={workdir}", *SMALL)[0]


def test_leaves_results_and_figures(finished):
    workdir, printed = finished
    results = json.loads((workdir / "results.json").read_text())
    assert set(results) == {
        "experiment",
        "config",
        "environment",
        "rows",
        "manifolds",
        "notes",
        "seconds",
        "claims",
        "figures",
    }
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
    figures = {file.name for file in workdir.glob("*.svg")}
    per_loss = ("densities", "attacked", "tangent_fraction")
    assert figures == {"manifold.svg", "loss_gradients.svg"} | {
        f"{f}_{loss}.svg" for f in per_loss for loss in ("xent", "cw")
    }
    assert str(workdir) in printed
    assert all(name in printed for name in names)


def test_the_page_is_whole_and_fetches_nothing(finished):
    workdir, _ = finished
    text = (workdir / "report.html").read_text()
    assert text.count("data:image/svg+xml;base64,") == len(list(workdir.glob("*.svg")))
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert re.search(r"python[\d.]* -m experiments\.manifold_distance --workdir=", text)
    claims = json.loads((workdir / "results.json").read_text())["claims"]
    # Two measures, two analyses, two norms, two training losses.
    assert len(claims) == 16
    assert {claim["verdict"] for claim in claims} <= {"seen once", "the reverse seen once", "not told"}


def test_a_finished_run_is_not_run_again(finished, run):
    workdir, printed = finished
    before = {file: file.stat().st_mtime_ns for file in workdir.iterdir()}
    again, said = run("manifold_distance", f"--workdir={workdir}", *SMALL)
    assert again.splitlines()[0] == f"finished already: {workdir}"
    assert again.splitlines()[1:16] == printed.splitlines()[:15]
    assert "training" not in said
    assert before == {file: file.stat().st_mtime_ns for file in workdir.iterdir()}


def test_a_figure_that_is_gone_is_drawn_again(finished, run):
    workdir, _ = finished
    (workdir / "manifold.svg").unlink()
    run("manifold_distance", f"--workdir={workdir}", *SMALL)
    assert (workdir / "manifold.svg").exists()
    assert (workdir / "report.html").read_text().count("data:image/svg+xml;base64,") == len(list(workdir.glob("*.svg")))


def test_one_seed_gives_the_same_rows_to_the_bit_and_detail_and_curves_change_nothing(finished, tmp_path, run):
    workdir, _ = finished
    second = tmp_path / "second"
    _, said = run("manifold_distance", f"--workdir={second}", "-v", "--tensorboard", *SMALL)
    first, again = (json.loads((path / "results.json").read_text())["rows"] for path in (workdir, second))
    assert first == again
    assert said.count("training l2-xent, 2 networks: epoch") > 3
    assert curves(second / "tensorboard" / "l2-xent").keys() == {
        f"{metric}/l2-xent-{epsilon}" for metric in ("accuracy", "loss") for epsilon in ("0.5", "1")
    }


def curves(directory):
    accumulator = EventAccumulator(str(directory)).Reload()
    return {tag: [event.value for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_a_directory_of_another_configuration_is_refused(finished, run):
    workdir, _ = finished
    before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
    _, said = run("manifold_distance", f"--workdir={workdir}", "--seed=7", *SMALL, status=1)
    assert said.strip().splitlines()[-1].startswith("error: ")
    assert "holds a run with seed = 0, asked for 7" in said
    assert before == {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}


def test_distances_to_a_manifold_that_holds_the_images_are_not_rescaled():
    rounding, spread, attacked = np.array([0.0, 1e-7, 3e-7]), np.array([1.0, 2.0, 5.0]), np.array([1.0, 3.0])
    np.testing.assert_array_equal(modes.rescaled(attacked, rounding), attacked)
    np.testing.assert_allclose(modes.rescaled(attacked, spread), [0, 0.5])
