"""Run directories, results and densities."""

import csv
import json
import math

import numpy as np
import pytest

from robgrad import report, runs

CONFIG = {"dataset": "digits", "radii": (1.0, 2.0)}


def test_a_run_is_opened_again_only_for_the_same(tmp_path):
    run = tmp_path / "run"
    path, finished = runs.open_run(run, "one", CONFIG, {"jax": "1"})
    assert finished is None
    report.write_results(path, "one", CONFIG, {"jax": "1"}, [{"a": 1}], 1.0)
    before = {file: file.read_bytes() for file in run.iterdir()}
    assert runs.open_run(run, "one", CONFIG, {"jax": "2"})[1]["rows"] == [{"a": 1}]
    with pytest.raises(runs.RunError, match=r"holds a run with radii = \[1.0, 2.0\], asked for \[3\]"):
        runs.open_run(run, "one", CONFIG | {"radii": (3,)}, {})
    with pytest.raises(runs.RunError, match="expected a run of two, found one of one"):
        runs.open_run(run, "two", CONFIG, {})
    assert before == {file: file.read_bytes() for file in run.iterdir()}


def test_other_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(runs.RunError, match="expected an empty directory or an earlier run"):
        runs.open_run(tmp_path, "one", CONFIG, {})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(runs.RunError, match="cannot be used as a run directory"):
        runs.open_run(tmp_path / "thesis.tex", "one", CONFIG, {})


def test_results_are_plain_json_and_csv(tmp_path):
    rows = [
        {"name": "x", "value": np.float32(0.5), "none": np.nan},
        {"name": "y", "value": np.float64(2), "none": None},
    ]
    report.write_results(tmp_path, "one", CONFIG, {}, rows, 1.0)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["rows"] == [{"name": "x", "value": 0.5, "none": None}, {"name": "y", "value": 2.0, "none": None}]
    with open(tmp_path / "results.csv") as file:
        assert [row["value"] for row in csv.DictReader(file)] == ["0.5", "2.0"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.csv", "results.json"]
    assert report.table(read["rows"], ["name", "none", "value"]).splitlines()[1].split() == ["x", "-", "0.500"]


def test_mode_finds_the_peak():
    draws = np.concatenate([np.random.default_rng(0).normal(2.0, 0.1, 900), np.linspace(0, 6, 100)])
    assert report.mode(draws) == pytest.approx(2.0, abs=0.05)
    assert math.isnan(report.mode(draws[:1]))
    assert math.isnan(report.mode(np.ones(5)))


def test_intervals_are_those_of_theory():
    """Of a mean, 1.96 standard errors each way; of nothing, none."""
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    low, high = report.interval(values, np.mean)
    error = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose([low, high], [values.mean() - error, values.mean() + error], atol=0.1 * error)
    assert all(math.isnan(bound) for bound in report.interval(values[:1], np.median))


def test_arrays_are_written_whole(tmp_path):
    report.write_arrays(tmp_path / "a.npz", {"xent/own": np.arange(3) > 1})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["xent/own"], [False, False, True])
