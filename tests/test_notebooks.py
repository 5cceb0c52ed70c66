"""The notebooks run from top to bottom, in a short form, and keep their outputs."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "experiments" / "notebooks").glob("*.ipynb"))


def cells(path):
    """The sources and outputs of a notebook's cells of code."""
    every = json.loads(path.read_text())["cells"]
    return [("".join(cell["source"]), cell["outputs"]) for cell in every if cell["cell_type"] == "code"]


LEAST = {"EPOCHS": 1, "RETRAINING_EPOCHS": 1, "TRAINED": 200, "IMAGES": 10, "SEEDS": 2, "RADII": (0.0, 1.0)}


def least(sizes):
    """The line of a notebook's sizes with the least that works."""
    return f"{sizes[1]} = {', '.join(str(LEAST[name]) for name in sizes[1].split(', '))}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, capsys):
    matplotlib.use("Agg")
    names: dict = {}
    for source, _ in cells(path):
        short = re.sub(r"^(EPOCHS, .*) = .*$", least, source, flags=re.M)
        exec(compile(short, path.name, "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) > 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_outputs(path):
    printed = [output for _, outputs in cells(path) for output in outputs]
    assert printed
    assert not any(output["output_type"] == "error" for output in printed)


def test_there_are_five():
    assert len(NOTEBOOKS) == 5
