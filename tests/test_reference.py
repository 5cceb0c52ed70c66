"""The API reference builds from the docstrings, and what these name exists."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

import robgrad

FAMILIES = robgrad.__all__


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages' texts by their paths."""
    built = tmp_path_factory.mktemp("reference")
    command = [sys.executable, "-W", "error::UserWarning", "-m", "pdoc", "robgrad", "-o", str(built)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return {path.relative_to(built): path.read_text() for path in built.rglob("*.html")}


def test_every_family_and_name_is_in_the_reference(pages):
    for family in FAMILIES:
        text = pages[Path("robgrad") / f"{family}.html"]
        for name in getattr(importlib.import_module(f"robgrad.{family}"), "__all__", ()):
            own_page = Path("robgrad") / family / f"{name}.html"
            assert own_page in pages or f'id="{name}"' in text, f"robgrad.{family}.{name}"


def test_no_link_leads_nowhere(pages):
    for path, text in pages.items():
        for link, anchor in re.findall(r'href="([^":#]*\.html)?#([\w.]+)"', text):
            target = Path(*path.parent.parts, link) if link else path
            parts = reduce(lambda done, part: done[:-1] if part == ".." else [*done, part], target.parts, [])
            assert f'id="{anchor}"' in pages[Path(*parts)], f"{path}: {link}#{anchor}"


def documented():
    """Every docstring of the package and where it stands."""
    for info in pkgutil.walk_packages(robgrad.__path__, "robgrad."):
        module = importlib.import_module(info.name)
        yield info.name, module.__doc__
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == info.name and not name.startswith("_")
            if own and (inspect.isfunction(value) or inspect.isclass(value)):
                yield f"{info.name}.{name}", inspect.getdoc(value)


def test_every_public_thing_has_a_docstring_and_the_names_in_it_exist():
    for where, text in documented():
        assert text, where
        for name in re.findall(rf"`(?:robgrad\.)?((?:{'|'.join(FAMILIES)})\.\w+)", text):
            family, one = name.split(".")
            assert hasattr(importlib.import_module(f"robgrad.{family}"), one), f"{where} names {name}"
