"""The benchmark works; nothing is asserted of its times."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_short_form(tmp_path):
    arguments = [
        "--networks=digits",
        "--repeats=1",
        "--pgd_steps=2",
        "--train_steps=1",
        "--nopeers",
        f"--workdir={tmp_path}",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == [
        *["compiled loop", "Python loop", "compiled loop, plain lax"] * 2,
        *["one program, stacked", "one after another"],
    ]
    assert all(row["ms_per_step"] > 0 and row["ratio"] > 0 for row in rows)
