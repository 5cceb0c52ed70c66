"""Results as rows and as pictures."""

import matplotlib
import numpy as np
import pytest

from robgrad import plots
from robgrad.attacks.evaluation import Evaluation
from robgrad.faithfulness import Curve
from robgrad.gradients import Alignment

matplotlib.use("Agg")
CURVE = Curve(np.array([10.0, 90.0]), np.array([0.8, 0.3]), np.zeros(2), np.array([0.9, 0.5]), 0.1, 0.05, 0.15)
ALIGNMENT = Alignment(*np.array([[1.0, 2.0], [0.3, np.nan], [0.1, 0.1], [0.5, np.nan], [1.0, 1.5], [2.0, 2.5]]))
EVALUATION = Evaluation(
    np.array([True, False]),
    np.array(["", "apgd-ce"]),
    np.zeros((2, 1, 1, 1)),
    np.array([np.nan, 0.1]),
    {"clean": 2, "apgd-ce": 1},
    (),
)


@pytest.mark.parametrize("result", [CURVE, ALIGNMENT, EVALUATION], ids=lambda result: type(result).__name__)
def test_a_result_has_rows_and_plots_itself(result):
    rows = result.to_rows()
    assert len(rows) == 2
    assert rows[0].keys() == rows[1].keys()
    axes = result.plot()
    assert axes.get_xlabel() or axes.get_ylabel()
    assert result.plot(axes) is axes


def test_what_rows_hold():
    assert CURVE.to_rows()[1] == {"percentile": 90.0, "accuracy": 0.3, "std": 0.0, "random": 0.5}
    assert ALIGNMENT.to_rows()[0]["tangent_fraction"] == pytest.approx(0.3)
    assert EVALUATION.to_rows()[1] == {"attack": "apgd-ce", "broken": 1, "accuracy": 0.5}


def test_without_matplotlib_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="needs matplotlib: pip install matplotlib"):
        plots.axes_of()
