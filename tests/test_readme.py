"""README's and the docstrings' examples run, and README's commands are understood."""

import contextlib
import copy
import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest
from absl import flags

from robgrad.faithfulness import retraining
from robgrad.gradients import alignment

README = (Path(__file__).parent.parent / "README.md").read_text()
SMALL = [
    *("--train_examples=200", "--test_examples=20", "--epochs=1", "--standard_epochs=1", "--attack_steps=1"),
    *("--vae_gan_epochs=1", "--analysis_steps=1", "--robust_steps=1", "--norms=l2", "--train_losses=xent"),
    *("--analysis_losses=xent", "--l2_epsilons=2"),
]


def commands():
    """Every command of README that starts an experiment, with comments and the shell around it removed."""
    for line in re.sub(r"\\\n", " ", README).splitlines():
        for text in re.findall(r"python -m (experiments\.\w+[^#`\"|&]*)", line):
            yield text.strip()


def test_python_examples_run(tmp_path, run, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("manifold_distance", f"--workdir={tmp_path / 'runs' / 'manifold_distance-digits-quick'}", *SMALL)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    *networks, _, distance = (line.split() for line in capsys.readouterr().out.splitlines())
    assert len(networks) == 3
    for fraction, chance, moved in networks:
        assert abs(float(chance) - 5 / 64) < 1e-6
        assert 0 < float(fraction) < 1
        assert float(moved) > 0
    assert float(distance[0]) > 0
    trained = [*SMALL[:5], "--robust_steps=1", "--norms=l2", "--train_losses=xent", "--retraining_epochs=1"]
    shared = f"--networks_from={tmp_path / 'runs' / 'manifold_distance-digits-quick'}"
    sizes = ["--stack_size=20", "--epsilons=3", "--seeds=1", "--percentiles=50", f"--workdir={tmp_path / 'faithful'}"]
    assert "training standard" not in run("roar_kar", shared, *sizes, *trained)[1]
    printed, _ = run(
        "manifold_distance", f"--dataset={tmp_path / 'mine.npz'}", f"--workdir={tmp_path / 'mine'}", *SMALL
    )
    assert "l2-xent-2" in printed


@pytest.mark.parametrize("module", [alignment, retraining])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_commands_are_understood():
    found = list(commands())
    assert {"experiments.reproduce", "experiments.roar_kar", "experiments.benchmark"} <= {
        one.split()[0] for one in found
    }
    for name in {one.split()[0] for one in found}:
        importlib.import_module(name)
    for command in found:
        values = copy.deepcopy(flags.FLAGS)
        arguments = [one for one in shlex.split(command) if one != "-v"]
        if "--helpshort" not in arguments:
            with contextlib.redirect_stdout(None):
                assert values(arguments) == arguments[:1], command
