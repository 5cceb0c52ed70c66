"""The benchmark works and its contenders do equal work; nothing is asserted of its times."""

import importlib.util
import json

import pytest

from experiments import suites
from robgrad import models


def test_short_form(tmp_path, run):
    chosen = "loops,attack,train,retrain,gradients,devices,data"
    peers = "eager,func_stack,foolbox,foolbox_jax" if importlib.util.find_spec("torch") else "foolbox_jax"
    arguments = ["--quick", "--networks=digits", f"--suites={chosen}", f"--peers={peers}", f"--workdir={tmp_path}"]
    printed, _ = run("benchmark", *arguments)
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    assert [*dict.fromkeys(row["suite"] for row in rows)] == chosen.split(",")
    assert all(row["ms"] > 0 for row in rows)
    assert {row["ratio"] for row in rows if row["variant"] == "robgrad"} == {1.0}
    # Nothing was said of contenders that failed or gave something else.
    assert "left out (" not in printed.replace("(pip install", "")
    assert " gave " not in printed
    if importlib.util.find_spec("torch"):
        assert {row["suite"] for row in results["against_the_best"]} == {"attack", "train", "retrain", "gradients"}
        assert (tmp_path / "speed.png").exists()


def test_operations_are_counted_as_by_hand():
    # 3x3 kernels, 1 to 16 and 16 to 32 channels on 64 pixels; dense 16 * 32 to 64, 64 to 10.
    expected = 2 * (64 * 9 * 16 + 64 * 9 * 16 * 32 + 512 * 64 + 640)
    assert suites.forward_flops(models.digits_cnn(), (8, 8, 1)) == expected


@pytest.mark.parametrize("flag", ["--suites=all", "--peers=keras", "--networks=vgg"])
def test_bad_input_ends_in_one_line(flag, run):
    printed, said = run("benchmark", flag, status=1)
    assert "expected some of" in said + printed
