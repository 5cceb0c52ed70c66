"""What is built of this checkout works away from it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist."""
    place = tmp_path_factory.mktemp("built")
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("robgrad", "experiments", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", place, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,), (sdist,) = place.glob("*.whl"), place.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_holds_the_library_alone(built):
    wheel, sdist = built
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"robgrad"}
    assert "robgrad/py.typed" in names
    about = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    for field in ("License-Expression: MIT", "Requires-Python: >=3.11", "Author: ", "Project-URL: ", "Classifier: "):
        assert field in about
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/robgrad/__init__.py") for name in archive.getnames())


def test_a_strangers_script_runs_by_the_wheel_alone(built, tmp_path):
    """Networks in NNX, Equinox and PyTorch, from nothing to a figure."""
    script = ROOT / "tests" / "stranger.py"
    assert sum(bool(line.strip()) for line in script.read_text().splitlines()) <= 40
    place = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", built[0]]
    subprocess.run(place, check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "MPLBACKEND": "Agg"}
    check = "import robgrad, sys; sys.exit(not robgrad.__file__.startswith(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", check, tmp_path], check=True, cwd=tmp_path, env=environment)
    ran = subprocess.run(
        [sys.executable, script, "1", "20"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line.split(": ") for line in ran.stdout.splitlines() if line.count(": ") == 3]
    assert [line[0] for line in lines] == ["NNX", "Equinox", "PyTorch"]
    for _, clean, robust, fraction in lines:
        assert 0 <= float(robust) <= float(clean) <= 1
        assert 0 < float(fraction) < 1
    assert (tmp_path / "roar.png").exists()
