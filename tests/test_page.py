"""Pages, verdicts and the whole paper in small."""

import dataclasses
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments import claims, correlations, presets
from robgrad import page, report

REPRODUCE = [
    *("--train_examples=200", "--test_examples=40", "--epochs=1", "--standard_epochs=2", "--attack_steps=2"),
    *("--robust_steps=2", "--analysis_steps=2", "--vae_gan_epochs=1", "--norms=l2", "--train_losses=xent"),
    *("--l2_epsilons=1,2", "--percentiles=50", "--seeds=2", "--retraining_epochs=1", "--repeats=2", "--points=500"),
]


class Reader(HTMLParser):
    """Checks that tags close, and collects what they hold."""

    VOID = ("meta", "link", "img")

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_a_page_holds_what_it_is_given_and_escapes_it():
    rows = [{"a": "<x> & 'y'", "b": 0.123456, "c": None}, {"a": "good one", "b": 1234567, "c": [1, 2]}]
    table = page.Table("a <table>", rows, {"a": "A", "b": "B", "c": "C"}, {"good one": "good"})
    parts = ["5 < 6", table, page.Figure(b"png", 'a "caption"'), page.Code("cmd --flag='<>'", "folded")]
    text = page.document("Title & more", [page.Section("One", parts)])
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.cells == ["<x> & 'y'", "0.1235", "-", "good one", "1,234,567", "1, 2"]
    assert ("class", "good") in reader.attributes
    assert ("data-value", "0.123456") in reader.attributes
    assert ("src", "data:image/png;base64,cG5n") in reader.attributes
    assert ("alt", 'a "caption"') in reader.attributes
    assert "<script>" in text
    assert "http" not in text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.2, claims.HOLDS),
        (-0.1, 0.2, claims.UNTESTED),
        (-0.2, -0.1, claims.FAILS),
        (np.array([0.1, 0.1]), np.array([0.2, 0.2]), claims.HOLDS),
        (np.array([0.1, -0.1]), np.array([0.2, 0.2]), claims.UNTESTED),
        (np.array([0.1, -0.2]), np.array([0.2, -0.1]), claims.FAILS),
        (np.nan, np.nan, claims.UNTESTED),
    ],
)
def test_verdicts_follow_the_rule(low, high, expected):
    assert claims.verdict(low, high) == expected


def test_orders_are_judged_on_paired_examples():
    generator = np.random.default_rng(0)
    images = generator.normal(0, 10, 200)
    # Far apart as pairs, not to be told apart as groups.
    values = np.stack([images + 2, images + 1, images], axis=1) + generator.normal(0, 0.1, (200, 3))
    mean = lambda draw: draw.mean(0)  # noqa: E731
    assert claims.ordered("", "", "", "", values, mean)["verdict"] == claims.HOLDS
    assert claims.ordered("", "", "", "", values[:, ::-1], mean)["verdict"] == claims.FAILS
    shuffled = np.stack([generator.permutation(column) for column in values.T], axis=1)
    assert claims.ordered("", "", "", "", shuffled, mean)["verdict"] == claims.UNTESTED


def test_signs_are_the_papers():
    row = dict(zip(correlations.CORRELATED, ("kar", "strength", "l2", "xent", "gradient"), strict=True))
    row |= {"networks": 6, "rank": -0.9, "rank_low": -0.99, "rank_high": -0.5, "rank_published": -0.4623}
    assert claims.of_correlations([row], "strength")[0]["verdict"] == claims.HOLDS
    assert claims.of_correlations([row | {"rank_published": 0.5}], "strength")[0]["verdict"] == claims.FAILS
    assert claims.of_correlations([row | {"rank_high": 0.1}], "strength")[0]["verdict"] == claims.UNTESTED
    assert claims.of_correlations([row], "accuracy") == []


def test_ways_out_compare_networks_of_equal_rank():
    rows = [
        {
            **{"benchmark": benchmark, "attribution": attribution, "train_norm": norm, "train_loss": "xent"},
            **{"train_epsilon": epsilon, "score": (norm == "linf") * (benchmark == "kar") + epsilon / 1e6},
        }
        for benchmark in ("roar", "kar")
        for attribution in ("gradient", "gradient_times_input")
        for norm, epsilons in (("l2", (1, 2, 3)), ("linf", (0.1, 0.2, 0.3)))
        for epsilon in epsilons
    ]
    found = {row["claim"]: row["verdict"] for row in claims.of_ways_out(rows)}
    assert found["KAR: l-inf training scores above l2 training"] == claims.HOLDS
    assert found["l-inf training gains more in KAR over l2 than it loses in ROAR"] == claims.HOLDS
    assert found["KAR: the global Gradient * Input scores above the local Gradient"] == claims.UNTESTED
    # A gain in ROAR alone is none in KAR.
    swapped = [row | {"benchmark": "kar" if row["benchmark"] == "roar" else "roar"} for row in rows]
    found = {row["claim"]: row["verdict"] for row in claims.of_ways_out(swapped)}
    assert found["l-inf training gains more in KAR over l2 than it loses in ROAR"] != claims.HOLDS


def test_only_the_papers_own_sizes_are_held_to_its_numbers():
    common = {"dataset": "mnist", "preset": "paper", "seed": 0, "matmul_precision": "float32"}
    config = presets.ManifoldConfig(**common, **presets.MANIFOLD["paper"]["mnist"])
    assert claims.is_paper_size(config, presets.MANIFOLD)
    quick = presets.ManifoldConfig(**common, **presets.MANIFOLD["quick"]["mnist"])
    assert not claims.is_paper_size(quick, presets.MANIFOLD)
    for changed in ({"reconstruction_weight": 1.0}, {"analysis_step_size": 0.1}):
        assert not claims.is_paper_size(dataclasses.replace(config, **changed), presets.MANIFOLD)
    assert claims.is_paper_size(dataclasses.replace(config, seed=1, train_losses=("xent",)), presets.MANIFOLD)


def test_what_cannot_be_measured_is_not_tested():
    values = np.array([[1.0, np.nan], [2.0, np.nan]])
    assert claims.ordered("", "", "", "", values, np.nanmedian)["verdict"] == claims.UNTESTED


def test_modes_are_those_of_the_density():
    values = np.random.default_rng(1).gamma(3.0, size=2000)
    grid = np.linspace(values.min(), values.max(), 4000)
    assert report.mode(values) == pytest.approx(grid[np.argmax(report.density(values)(grid))], abs=0.02)


def test_the_whole_paper_on_shared_networks(tmp_path, run):
    arguments = [f"--workdir={tmp_path / 'all'}", *REPRODUCE]
    printed, said = run("reproduce", *arguments)
    assert said.count("training l2-xent") == said.count("training standard") == 1
    text = (tmp_path / "all" / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert all(f"{section} " in text for section in ("2.1", "2.2", "3.2", "3.3"))
    for name in ("boundary_tilting", "manifold_distance-digits", "roar_kar-digits"):
        assert json.loads((tmp_path / "all" / name / "results.json").read_text())["rows"]
    assert printed.count("claims") == 4
    again, said = run("reproduce", *arguments)
    assert again.count("finished already") == 3
    assert "training" not in said


def test_a_dry_run_counts_what_would_be_done(tmp_path, run):
    printed, _ = run("reproduce", f"--workdir={tmp_path / 'all'}", "--dry_run", *REPRODUCE)
    # The toy's 3 networks twice, standard and two robust ones, the VAE-GAN; 2 benchmarks, 1 percentile, 2 seeds,
    # 2 attributions of 3 networks and Random.
    assert "10 networks and 28 retrainings" in printed
    assert "GiB" in printed
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets=digits,nothing"], "unknown data set 'nothing'"),
        (["--preset=paper", "--datasets=digits"], "expected --dataset to be one of"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, tmp_path, run):
    _, said = run("reproduce", f"--workdir={tmp_path / 'all'}", *arguments, status=1)
    assert message in said.strip().splitlines()[-1]
