"""README's and the docstrings' examples run, and README's commands name what exists."""

import doctest
import re
from pathlib import Path

from robgrad import alignment

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    fraction, chance, distance = map(float, capsys.readouterr().out.split())
    assert abs(chance - 5 / 64) < 1e-6
    assert 0 < fraction < 1
    assert distance > 0


def test_docstring_examples_run():
    assert doctest.testmod(alignment).failed == 0


def test_commands_name_modules_that_exist():
    named = set(re.findall(r"python -m (experiments\.\w+)", README))
    assert named
    for name in named:
        assert (Path(__file__).parent.parent / Path(*name.split("."))).with_suffix(".py").exists()
