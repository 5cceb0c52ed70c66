"""Run directories: opened again only for the same, written whole, and errors called by their names."""

import json

import numpy as np
import pytest

from robgrad import runs
from robgrad.runs import checkpoints

CONFIG = {"dataset": "digits", "radii": (1.0, 2.0)}


def test_a_run_is_opened_again_only_for_the_same(tmp_path):
    run = tmp_path / "run"
    path, finished = runs.open_run(run, "one", CONFIG, {"jax": "1"})
    assert finished is None
    runs.write(path / "results.json", json.dumps({"rows": [{"a": 1}]}))
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


def test_arrays_are_written_whole_and_damage_is_seen(tmp_path):
    path = tmp_path / "a.npz"
    runs.write_arrays(path, {"xent/own": np.arange(3000) > 1})
    np.testing.assert_array_equal(runs.read_arrays(path)["xent/own"][:3], [False, False, True])
    whole = path.read_bytes()
    # A zip file cut anywhere: in its data, in its directory, in its last record.
    for cut in (10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:cut])
        assert runs.read_arrays(path) is None
    assert runs.read_arrays(tmp_path / "none.npz") is None


def test_only_the_file_systems_errors_are_called_so(tmp_path):
    with pytest.raises(runs.RunError, match=r"cannot be written .*No space left"), runs.writing(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(runs.RunError, match="cannot be written"), runs.writing(tmp_path):
        raise ValueError("RESOURCE_EXHAUSTED: writing: No space left on device")
    with pytest.raises(TypeError, match="a bug"), runs.writing(tmp_path):
        raise TypeError("a bug")


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path):
    with pytest.raises(runs.DamagedError), checkpoints.reading(tmp_path):
        raise ValueError("not a checkpoint")
    with pytest.raises(runs.RunError, match="nothing was changed") as caught, checkpoints.reading(tmp_path):
        raise PermissionError(13, "Permission denied")
    assert not isinstance(caught.value, runs.DamagedError)
    with pytest.raises(MemoryError), checkpoints.reading(tmp_path):
        raise MemoryError


def test_what_is_put_aside_stays(tmp_path):
    for content in ("first", "second"):
        (tmp_path / "stage").mkdir()
        (tmp_path / "stage" / "file").write_text(content)
        checkpoints._put_aside(tmp_path / "stage", tmp_path / "stage.unreadable")
    kept = [(tmp_path / name / "file").read_text() for name in ("stage.unreadable", "stage.unreadable.1")]
    assert kept == ["first", "second"]
