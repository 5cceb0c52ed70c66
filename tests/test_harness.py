"""Pages, verdicts and the whole paper in small."""

import dataclasses
import json
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import manifold_distance, tradeoff
from experiments.harness import experiment
from experiments.harness.pages import figures, glossary, html, report, tables
from experiments.harness.settings import presets
from experiments.harness.training.specs import Spec
from experiments.harness.verdicts import claims, correlations, modes
from robgrad import data as data_sets
from robgrad import faithfulness
from robgrad.manifolds import densities

REPRODUCE = [
    *("--train_examples=100", "--test_examples=20", "--epochs=1", "--standard_epochs=1", "--attack_steps=2"),
    *("--pgd_steps=2", "--analysis_steps=2", "--train_losses=xent", "--norms=l2", "--l2_epsilons=1,2"),
    *("--batch_size=25", "--vae_gan_epochs=1", "--vae_gan_batch_size=25", "--retraining_batch_size=25"),
    *("--percentiles=50", "--retraining_seeds=2", "--retraining_epochs=1", "--repeats=2", "--points=200"),
    *("--manifold=vae-gan", "--attributions=gradient,deep_lift", "--measured_examples=5"),
    *("--sensitivity_samples=1", "--attacked_examples=3", "--l2_evaluated=1", "--linf_evaluated=0.1"),
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
    table = html.Table("a <table>", rows, {"a": "A", "b": "B", "c": "C"}, {"good one": "good"})
    fold = html.Fold("a claim", "holds in 1 of 2", "bad", html.Table("", [{"some_name": "l2_x"}], ("some_name",)))
    parts = ["5 < 6", table, html.Figure(b"svg", 'a "caption"'), fold, html.Code("cmd --flag='<>'", "folded")]
    text = html.document("Title & more", [html.Section("One", parts)])
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.cells == ["<x> & 'y'", "0.1235", "-", "good one", "1,234,567", "1, 2", "l2 x"]
    assert ("class", "good") in reader.attributes
    assert ("data-value", "0.123456") in reader.attributes
    assert ("src", "data:image/svg+xml;base64,c3Zn") in reader.attributes
    assert ("alt", 'a "caption"') in reader.attributes
    assert "some name" in text
    assert "some_name" not in text
    assert ("class", "verdict bad") in reader.attributes
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
    """With three trainings; with one it is what was seen once, by images alone."""
    assert claims.verdicts([claims.Steps(low, high)], 3) == [expected]
    once = {claims.HOLDS: claims.ONCE, claims.FAILS: claims.ONCE_REVERSED}
    assert claims.verdicts([claims.Steps(low, high)], 1) == [once.get(expected, expected)]


def verdict_of(rows):
    """The verdict of the one row of a family."""
    (row,) = claims.judged([rows] if isinstance(rows, dict) else rows)
    return row["verdict"]


def claimed(seeds=3):
    return claims.Claim("", "", "", "", claims.Over(seeds, ""))


def test_a_family_pays_for_its_groups():
    """Holm, by hand: with df 2 a step of 1.2 half widths has a chance of 0.018, enough for one group, not for two."""
    narrow, wide = claims.Steps(0.2, 2.2), claims.Steps(-1.0, 1.0)
    assert claims.verdicts([narrow], 3) == [claims.HOLDS]
    assert claims.verdicts([narrow, wide], 3) == [claims.UNTESTED, claims.UNTESTED]
    sure = claims.Steps(0.99, 1.01)
    assert claims.verdicts([narrow, sure], 3) == [claims.HOLDS, claims.HOLDS]
    # A step that goes the other way fails its group, if it stands out among all steps of the family.
    assert claims.verdicts([claims.Steps([1.0, -1.1], [1.1, -1.0]), sure], 3) == [claims.FAILS, claims.HOLDS]
    assert claims.verdicts([claims.Steps([1.0, -2.2], [1.1, -0.2]), sure], 3) == [claims.UNTESTED, claims.HOLDS]
    np.testing.assert_array_equal(claims.rejected([0.01, 0.02, 0.04]), [False] * 3)
    np.testing.assert_array_equal(claims.rejected([0.008, 0.012, 0.04]), [True, True, False])


def test_orders_are_judged_on_paired_examples():
    generator = np.random.default_rng(0)
    images = generator.normal(0, 10, 200)
    # Far apart as pairs, not to be told apart as groups.
    values = np.stack([images + 2, images + 1, images], axis=1) + generator.normal(0, 0.1, (200, 3))
    judged = lambda values: verdict_of(claims.ordered(claimed(1), values[None], lambda draw: draw.mean(0)))  # noqa: E731
    assert judged(values) == claims.ONCE
    assert judged(values[:, ::-1]) == claims.ONCE_REVERSED
    shuffled = np.stack([generator.permutation(column) for column in values.T], axis=1)
    assert judged(shuffled) == claims.UNTESTED
    assert judged(np.array([[1.0, np.nan], [2.0, np.nan]])) == claims.UNTESTED
    # Of few images nothing is told.
    assert judged(values[:29]) == claims.UNTESTED


def test_claims_are_grouped_with_what_fails_first():
    def row(text, verdict, published="-"):
        return claims.row(claims.Claim("2.1", text, "l2", published, claims.Over(3, "images")), "1", 0.0, 1.0, verdict)

    rows = [
        row("good", claims.HOLDS),
        row("mixed", claims.HOLDS),
        row("mixed", claims.FAILS),
        row("x", claims.UNTESTED),
    ]
    folds = report.folded(rows)
    assert [(fold.line, fold.verdict, fold.mark) for fold in folds] == [
        ("2.1: mixed", "does not hold in 1 of 2, holds in 1 of 2", "bad"),
        ("2.1: x", "not told", "open"),
        ("2.1: good", "holds", "good"),
    ]
    assert [len(fold.table.rows) for fold in folds] == [2, 1, 1]
    assert not claims.is_papers(rows[0])
    assert claims.is_papers(row("published", claims.HOLDS, "0.9"))


def test_an_interval_stands_behind_its_value():
    """In one cell, on pages and on the terminal; the heading says so; without bounds the value stands alone."""
    rows = [tables.with_interval("share", (0.4211, 0.35, 0.4904)), tables.with_interval("share", (0.5, np.nan, np.nan))]
    assert tables.interval_of(rows[0], "share") == (0.4211, 0.35, 0.4904)
    assert [line.strip() for line in tables.text(rows, {"share": "true share"}).splitlines()] == [
        "true share [95%]",
        "0.421 [0.350, 0.490]",
        "0.500",
    ]
    assert tables.text(rows[1:], ["share"]).split() == ["share", "0.500"]
    page = html.document("", [html.Section("", [html.Table("", rows, {"share": "true share"})])])
    assert "0.4211 [0.35, 0.4904]" in page
    assert "true share [95%]" in page


def test_every_column_is_explained():
    for one in experiment.every():
        columns = [*one.columns, *(name for _, names in one.others.values() for name in names)]
        assert {*columns} <= {*glossary.COLUMNS}, one.name


def test_a_network_has_one_colour_whatever_stands_beside_it():
    kinds = ["standard", "l2-xent-0.5", "l2-xent-1", "linf-xent-0.1", "l2-cw-1e-05"]
    colours = figures.palette(kinds)
    assert len({str(colours[kind]) for kind in kinds}) == len(kinds)
    assert [figures.group_of(kind) for kind in kinds] == ["standard", "l2-xent", "l2-xent", "linf-xent", "l2-cw"]


def test_a_figure_is_drawn_the_same_twice(tmp_path):
    groups = {"l2": {"l2-xent-1": [(0.5, 0.4, 0.6), (0.3, 0.3, 0.3)]}, "standard": {"standard": [(0.2, 0.3, 0.4)]}}
    for name in ("one.svg", "two.svg"):
        colours = figures.palette(["standard", "l2-xent-1"])
        figures.intervals_figure(tmp_path / name, groups, {"random": 0.1}, "share", colours, ("own", "another's"))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert b"l2-xent-1" in (tmp_path / "one.svg").read_bytes()


def test_seeds_that_disagree_leave_an_order_open():
    images = np.random.default_rng(0).normal(0, 1, 200)
    steps = lambda sizes: np.stack([np.stack([images + size, images], axis=1) for size in sizes])  # noqa: E731
    judged = lambda sizes: verdict_of(claims.ordered(claimed(3), steps(sizes), lambda draw: draw.mean(0)))  # noqa: E731
    assert judged([1.0, 1.1, 0.9]) == claims.HOLDS
    assert judged([1.0, 0.1, -0.8]) == claims.UNTESTED


def test_signs_are_the_papers():
    row = dict(zip(correlations.CORRELATED, ("kar", "strength", "l2", "xent", "gradient"), strict=True))
    row |= {
        "networks": 6,
        "network_seeds": 3,
        "rank": -0.9,
        "rank_low": -0.99,
        "rank_high": -0.5,
        "rank_share": 0.3,
        "rank_published": -0.4623,
    }
    judged = lambda **changed: verdict_of(correlations.claims_of("3.2", [row | changed], "strength"))  # noqa: E731
    assert judged() == claims.HOLDS
    assert judged(rank_published=0.5) == claims.FAILS
    assert judged(rank_high=0.1) == claims.UNTESTED
    assert judged(rank_low=np.nan) == claims.UNTESTED
    assert not list(correlations.claims_of("3.2", [row | {"rank_published": None}], "strength"))


def test_ways_out_compare_networks_of_equal_rank():
    """l-inf training gains in KAR alone; the global attribution gains nothing."""
    config = SimpleNamespace(attributions=("gradient", "gradient_times_input"), network_seeds=3, retraining_seeds=3)
    generator = np.random.default_rng(0)
    specs = [Spec(norm, "xent", e) for norm, all in (("l2", (1, 2)), ("linf", (0.1, 0.2))) for e in all]

    def judged(gaining):
        areas = {
            (spec, benchmark, attribution): generator.normal(
                (spec.norm == "linf") * (benchmark == gaining) - 0.2 * (spec.norm == "linf"), 1.0, (3, 500)
            )
            for spec in specs
            for benchmark in ("roar", "kar")
            for attribution in config.attributions
        }
        return {row["claim"]: row["verdict"] for row in claims.judged(tradeoff.ways_out(config, areas))}

    found = judged("kar")
    assert found["KAR: l-inf training scores above l2 training"] == claims.HOLDS
    assert found["l-inf training gains more in KAR over l2 than it loses in ROAR"] == claims.HOLDS
    assert found["KAR: the global Gradient * Input scores above the local Gradient"] == claims.UNTESTED
    # A gain in ROAR alone is none in KAR.
    found = judged("roar")
    assert found["KAR: l-inf training scores above l2 training"] == claims.FAILS
    assert found["l-inf training gains more in KAR over l2 than it loses in ROAR"] == claims.FAILS


def test_what_networks_of_a_norm_gain_is_judged_by_their_seeds():
    """Gains in one of three seeds of the networks are no gains of training, whatever images and retrainings say."""
    gains = [(seed, np.full((5, 400), 1.0 if seed == 0 else 0.0)) for seed in range(3)]
    means = tradeoff.by_seed(gains)
    assert means.shape == (3, 400)
    assert means[:, 0].tolist() == [1.0, 0.0, 0.0]
    low, high = faithfulness.bounds(means)
    assert low < 0 < high
    # Where networks have one seed it is their retrainings that differ.
    assert tradeoff.by_seed([(0, np.ones((5, 400))), (0, np.zeros((5, 400)))]).shape == (5, 400)


def test_seeds_of_a_network_are_one_point_of_a_correlation():
    rows = [
        {
            **{"benchmark": "roar", "attribution": "gradient", "train_norm": norm, "train_loss": norm and "xent"},
            **{"train_epsilon": epsilon, "network": f"{norm}-{epsilon}", "score": epsilon + seed, "test_accuracy": 1.0},
        }
        for norm, epsilon in ((None, 0.0), ("l2", 1.0), ("l2", 2.0))
        for seed in range(3)
    ]
    x, y = correlations.points(rows, "roar", "strength", "l2", "xent", "gradient")
    np.testing.assert_allclose(x, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(y, [1.0, 2.0, 3.0])


def test_an_interval_says_what_it_is_over():
    assert str(claims.Over(3, "200 images")) == "3 seeds, 200 images"
    assert str(claims.Over(1, "200 images")) == "200 images; one seed"


@pytest.mark.parametrize(
    ("modes", "low", "high", "expected"),
    [
        # Neighbours 0.03 apart: within 0.02 and a narrow interval it is met, within a wide one nobody knows.
        ((0.63, 0.60, 0.50), 0.625, 0.635, claims.HOLDS),
        ((0.63, 0.60, 0.50), 0.61, 0.64, claims.UNTELLABLE),
        ((0.63, 0.60, 0.50), 0.66, 0.70, claims.FAILS),
        # Neighbours nearer than what can be read decide nothing.
        ((0.115, 0.112, 0.105), 0.114, 0.116, claims.UNTELLABLE),
        ((0.115, 0.112, 0.105), 0.2, 0.3, claims.FAILS),
    ],
)
def test_a_published_number_needs_an_interval_that_tells_it_from_its_neighbours(modes, low, high, expected):
    assert claims.number(modes[0], modes, low, high, full=True) == expected
    assert claims.number(modes[0], modes, low, high, full=False) == claims.UNTESTED
    assert claims.number(modes[0], modes, np.nan, np.nan, full=True) == claims.UNTESTED


def manifold_config(preset, **given):
    images = np.zeros((60000, 28, 28, 1), np.uint8)
    labels = np.zeros(60000, np.int32)
    mnist = data_sets.Dataset("mnist", ("0",), data_sets.Split(images, labels), data_sets.Split(images, labels))
    common = {"preset": preset, "seed": 0, "matmul_precision": "float32"}
    return presets.made(manifold_distance.ManifoldConfig, manifold_distance.EXPERIMENT.presets, common, given, mnist)


def test_only_the_papers_own_sizes_are_held_to_its_numbers():
    paper = manifold_config("paper")
    assert modes.is_paper_size(paper)
    assert not modes.is_paper_size(manifold_config("quick"))
    for changed in ({"reconstruction_weight": 1.0}, {"analysis_step_size": 0.1}, {"step_sizes": {"l2": 0.1}}):
        assert not modes.is_paper_size(manifold_config("paper", **changed))
    assert modes.is_paper_size(dataclasses.replace(paper, seed=1, train_losses=("xent",)))


def test_settings_by_norm_replace_the_presets_norm_by_norm():
    given = manifold_config("paper", radii={"l2": (0.5,)})
    assert given.radii == {"l2": (0.5,), "linf": (0.05, 0.1, 0.2)}


def test_modes_are_those_of_the_density():
    values = np.random.default_rng(1).gamma(3.0, size=2000)
    grid = np.linspace(values.min(), values.max(), 4000)
    assert densities.mode(values) == pytest.approx(grid[np.argmax(densities.density(values)(grid))], abs=0.02)


def test_the_whole_paper_on_shared_networks_of_another_size(colour_file, tmp_path, run):
    """Images of 16x16x3 in four classes, which are of none of the paper's sizes, through every experiment."""
    arguments = [f"--dataset={colour_file}", f"--workdir={tmp_path / 'all'}", *REPRODUCE]
    printed, said = run("reproduce", *arguments)
    assert said.count("training l2-xent") == said.count("training standard") == 2
    text = (tmp_path / "all" / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert all(f"{section} " in text for section in ("2.1", "2.2", "3.2", "3.3"))
    named = ("known_manifold", "manifold_distance", "faithfulness", "roar_kar", "robustness")
    for name in ("boundary_tilting", *(f"{name}-colour" for name in named)):
        assert json.loads((tmp_path / "all" / name / "results.json").read_text())["rows"]
    assert printed.count("claims") == 7
    again, said = run("reproduce", *arguments)
    assert again.count("finished already") == 7
    assert "training" not in said
    # What is refused is refused before anything is touched.
    page = (tmp_path / "all" / "report.html").stat().st_mtime_ns
    _, said = run("reproduce", *arguments, "--epochs=2", status=1)
    assert "holds a run with epochs = 1, asked for 2" in said
    assert (tmp_path / "all" / "report.html").stat().st_mtime_ns == page


def test_a_dry_run_counts_what_would_be_done(colour_file, tmp_path, run):
    arguments = [f"--dataset={colour_file}", f"--workdir={tmp_path / 'all'}", *REPRODUCE]
    printed, _ = run("reproduce", "--dry_run", *arguments)
    # The toy's 3 networks twice, standard and two robust ones, the VAE-GAN, and those four again where the manifold is
    # known; 2 benchmarks, 1 percentile, 2 seeds of 2 attributions and Random, of 3 networks and of faithfulness' 2; 2
    # on masks alone.
    assert "14 networks and 50 retrainings" in printed
    assert "GiB" in printed
    # Of the toy there is a record, whatever the data set.
    assert "what 2 seeds would tell with a chance of 80%, by the record" in " ".join(printed.split())
    assert not (tmp_path / "all").exists()
