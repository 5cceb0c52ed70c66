"""What programs print fits the terminal, and ends with what was found."""

import json

import pytest

from experiments.harness import experiment, progress, running
from experiments.harness.results import records


def finished():
    for path in records.records():
        results = json.loads((path / "results.json").read_text())
        one = experiment.named(results["experiment"])
        if all(name in results for name in (*one.others, "claims")):
            yield pytest.param(one, experiment.Finished(path, results), id=path.name)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(("one", "run"), [*finished()])
def test_no_line_of_a_run_is_wider_than_the_terminal(one, run, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    running.show(one, run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(run.workdir)
    assert max(map(len, lines[:-1])) <= width
    # The table has a column beside the first, and each claim has its answer.
    assert len(lines[0].split()) >= 2
    said = " ".join(" ".join(lines).split())
    for claim in {row["claim"] for row in run.results["claims"]}:
        assert f": {claim} (" in said


def test_a_progress_line_fits_and_keeps_the_time_left():
    start, middle, end = "training l2-xent, 30 networks: epoch 1.0 of 15", ", loss 0.1 to 2.0" * 4, ", 128 s left"
    assert progress._fitted(start, middle, end, 200) == start + middle + end
    assert progress._fitted(start, middle, end, 79) == start + end
    short = progress._fitted(start, middle, end, 40)
    assert len(short) == 40
    assert short.endswith(end)


def test_quiet_runs_print_what_was_found_alone(run, tmp_path):
    few = ["--repeats=3", "--points=200", f"--workdir={tmp_path}/toy"]
    printed, said = run("boundary_tilting", "--quiet", *few)
    assert said == ""
    assert "claims" in printed
    _, said = run("boundary_tilting", "--quiet", "--verbose", *few, status=1)
    assert "expected without --verbose" in said
