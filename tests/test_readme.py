"""The documents' Python runs, their commands are understood by the programs they name, their tables are true."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments.harness import experiment
from experiments.harness.results import findings, records
from experiments.harness.settings import flags
from robgrad import runs
from robgrad.faithfulness import retraining
from robgrad.gradients import alignment
from robgrad.networks import equinox

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "experiments" / "README.md", ROOT / "experiments" / "benchmark" / "README.md"]
SMALL = [
    *("--train_examples=200", "--test_examples=20", "--epochs=1", "--standard_epochs=1", "--attack_steps=1"),
    *("--vae_gan_epochs=1", "--analysis_steps=1", "--pgd_steps=1", "--attacked_examples=3", "--norms=l2"),
    *("--train_losses=xent", "--analysis_losses=xent", "--l2_epsilons=2"),
]


def blocks(document):
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)


def commands():
    """Every command that starts a program, with comments and the shell around it removed."""
    for document in DOCUMENTS:
        for line in re.sub(r"\\\n", " ", document.read_text()).splitlines():
            for text in re.findall(r"python -m experiments\.(\w+[^#`\"|&]*)", line):
                yield text.strip()


def flags_of(name: str) -> flags.Flags:
    """A program's own flags."""
    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "EXPERIMENT"):
        return flags.Flags("", [module.EXPERIMENT.config])
    if name == "benchmark":
        module = importlib.import_module("experiments.benchmark.__main__")
    return module.program_flags()


@pytest.mark.parametrize("command", sorted({one for one in commands() if not one.startswith("NAME")}))
def test_commands_are_understood_by_the_program_they_name(command):
    flags_of(command.split()[0]).parse(shlex.split(command))


def test_every_program_is_named():
    named = {one.split()[0] for one in commands()}
    named |= {*re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)}
    assert {one.name for one in experiment.every()} | {"reproduce", "benchmark", "document"} <= named


def test_the_front_page_runs(capsys):
    names: dict = {}
    for block in blocks(ROOT / "README.md"):
        exec(compile(re.sub(r"epochs=5", "epochs=1", block), "README.md", "exec"), names)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [len(line) for line in lines] == [2, 2]
    for fraction, accuracy in lines:
        assert 0 < float(fraction) < 1
        assert 0 <= float(accuracy) <= 1


def test_the_experiments_page_runs(tmp_path, run, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("manifold_distance", f"--workdir={tmp_path / 'runs' / 'manifold_distance-digits-quick'}", *SMALL)
    for block in blocks(ROOT / "experiments" / "README.md"):
        exec(compile(block, "experiments/README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0
    own = [f"--dataset={tmp_path / 'mine.npz'}", f"--workdir={tmp_path / 'mine'}", "--manifold=pca"]
    printed, _ = run("manifold_distance", *own, *SMALL)
    assert "l2-xent-2" in printed


@pytest.mark.parametrize("module", [alignment, equinox, retraining])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_the_tables_are_what_the_records_say(run):
    run("document", "--check")


# What a stranger asks, and where a minute's reading answers it: a page that the front page leads to, and words there. A
# reader who had seen nothing else was asked them; what had no answer then (pixels, speed, versions) has one since.
QUESTIONS = {
    "What does it find?": ("README.md", "- The paper's claim"),
    "How do I run it, and how long does that take?": ("README.md", "three to five minutes"),
    "How do I judge a PyTorch network of mine?": ("README.md", "experiments.examine --network=net.py:build --weights"),
    "In which range are pixels and radii?": ("README.md", "Pixels and radii: [-1, 1]"),
    "What fails?": ("README.md", "What fails most:"),
    "What do the verdicts mean?": ("README.md", "else it is 'not told'"),
    "What has a direction that knows nothing?": ("README.md", "a random direction 0."),
    "On which sets, with how many seeds?": ("experiments/results/README.md", "ten seeds"),
    "Is it faster than PyTorch, and where is it not?": ("README.md", "faster than the fastest peer in"),
    "How do I train with another optimizer?": ("README.md", "training.Recipe(optimizer="),
    "Which attacks is robust accuracy by, and is it right?": ("README.md", "(published: 82.93%)"),
    "On which Python, JAX and devices was it tried?": ("experiments/README.md", "Tried: Python"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_a_stranger_asks_is_answered(question):
    page, words = QUESTIONS[question]
    assert words in (ROOT / page).read_text()
    assert page == "README.md" or f"]({page})" in (ROOT / "README.md").read_text()


def test_the_front_page_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    # Without what it shows as code, tables or their rules.
    prose = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    assert len([word for word in prose.split() if re.search(r"\w", word)]) <= 1100


def test_pages_of_results_are_short_and_their_links_lead_somewhere():
    index = records.RECORDS / "README.md"
    assert len(index.read_bytes()) < 30_000
    for page in [index, *(path / "README.md" for path in records.records())]:
        text = page.read_text()
        assert len(text.encode()) < 60_000, page
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            assert (page.parent / target).exists(), (page, target)


def test_a_site_has_a_page_for_each_record(tmp_path, monkeypatch):
    some = [path for path in records.records() if path.name in ("boundary_tilting", "roar_kar-fashion_mnist")]
    monkeypatch.setattr(records, "records", lambda: some)
    monkeypatch.setattr(findings, "answers", lambda results_of: "- One **answer**.")
    document = importlib.import_module("experiments.document")
    # The API's pages are built by a test of their own.
    monkeypatch.setattr(document, "write_reference", lambda directory: runs.write(directory / "api/robgrad.html", ""))
    index = document.write_site(tmp_path / "site")
    text = index.read_text()
    assert "One answer." in text
    for target in re.findall(r'href="([^"]+\.html)"', text):
        page = (index.parent / target).read_text()
        assert "<table>" in page or "/" in target
    assert len(list(index.parent.glob("*.html"))) == 3
    notebooks = {path.stem: path.read_text() for path in (index.parent / "notebooks").glob("*.html")}
    assert {*notebooks} == {path.stem for path in document.NOTEBOOKS.glob("*.ipynb")}
    assert "data:image/png;base64" in notebooks["own_network"]
    assert "robust at l2 0.5" in notebooks["own_network"]
    assert not re.search(r"<(?:img|script|link)[^>]+https?:", "".join(notebooks.values()))
