"""The rule for verdicts keeps its word: simulated families in which nothing is true, and such in which all is."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from experiments.harness import experiment
from experiments.harness.results import records
from experiments.harness.results.records import RECORDS
from experiments.harness.training.specs import specs_of
from experiments.harness.verdicts import claims, power, simulation
from robgrad import intervals, runs

TIMES = 600


@pytest.mark.parametrize("kind", simulation.SEEDS)
@pytest.mark.parametrize(
    ("seeds", "groups", "networks"),
    [(3, 1, 2), (3, 8, 4), (3, 24, 2), (5, 1, 2), (5, 8, 4), (5, 2, 25), (10, 1, 2), (10, 8, 5), (10, 24, 2)],
)
def test_where_nothing_is_true_little_is_said(kind, seeds, groups, networks):
    """Each wrong verdict in at most 5% of families, three standard errors of the simulation granted."""
    holds, fails, _ = simulation.shares(kind, seeds, groups, networks, times=TIMES)
    most = 0.05 + 3 * (0.05 * 0.95 / TIMES) ** 0.5
    assert holds <= most
    assert fails <= most


@pytest.mark.parametrize("kind", simulation.SEEDS)
def test_where_all_is_true_ten_seeds_say_so(kind):
    """Of steps of two and a half deviations of a seed, and of an order of five networks in eight groups."""
    holds, fails, _ = simulation.shares(kind, 10, 8, 5, 2.5, TIMES)
    assert holds > 0.8
    assert fails < 0.05


def test_the_table_of_an_hour_says_the_same():
    """Of every family and kind of seeds, at most 5% have a wrong verdict, three standard errors granted."""
    simulated = json.loads(records.SIMULATED.read_text())
    most = 0.05 + 3 * (0.05 * 0.95 / simulated["families"]) ** 0.5
    nothing = [row for row in simulated["rows"] if not row["step"]]
    assert {(row["seeds"], row["groups"], row["networks"]) for row in nothing} == {*simulation.FAMILIES}
    assert all(max(row["holds"] + row["fails"]) <= most for row in nothing)
    assert all(max(row["fails"]) <= most for row in simulated["rows"])


@pytest.mark.parametrize(("slopes", "alike"), [(0.0, 0.0), (0.3, 0.5), (1.0, 0.0), (0.0, 0.7)])
@pytest.mark.parametrize(("seeds", "groups", "points"), [(3, 8, 21), (10, 4, 6)])
def test_correlations_that_are_none_are_seldom_told(seeds, groups, points, slopes, alike):
    """Each seed has its own slope over networks, none on average; 1 is a deviation of what a network adds.

    Of that a share is alike in all seeds.
    """
    generator, places = np.random.default_rng(seeds + groups), np.linspace(-1, 1, points)
    shape = (TIMES, groups, seeds)
    values = slopes * generator.normal(size=(*shape, 1)) * places
    values += (1 - alike) ** 0.5 * generator.normal(size=(*shape, points))
    values += alike**0.5 * generator.normal(size=(TIMES, groups, 1, points))
    ranks = values.argsort(-1).argsort(-1) - (points - 1) / 2
    every = (ranks * places).sum(-1) / np.sqrt((ranks**2).sum(-1) * (places**2).sum())
    told = np.zeros(2)
    x = np.broadcast_to(places, (seeds, points))
    for time in range(TIMES):
        family = [
            claims.Steps.of_correlation(intervals.of_correlations(one, points, True, intervals.likeness(x, own, True)))
            for one, own in zip(every[time], values[time], strict=True)
        ]
        verdicts = claims.verdicts(family, seeds)
        told += claims.HOLDS in verdicts, claims.FAILS in verdicts
    assert (told / TIMES <= 0.05 + 3 * (0.05 * 0.95 / TIMES) ** 0.5).all()


def test_a_share_of_none_is_not_surely_none():
    """Wilson's interval, by its formula: of 0 in 100 up to z^2 / (100 + z^2)."""
    square = 1.959964**2
    value, low, high = intervals.of_share(np.zeros((1, 100), bool))
    assert (value, low) == (0.0, 0.0)
    assert high == pytest.approx(square / (100 + square), rel=1e-4)
    assert intervals.of_share(np.ones((3, 100), bool))[1] == pytest.approx(100 / (100 + square), rel=1e-4)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_shares_are_covered(share):
    generator = np.random.default_rng(0)
    bounds = [intervals.of_share(generator.random((1, 100)) < share)[1:] for _ in range(2000)]
    assert 0.93 < np.mean([low <= share <= high for low, high in bounds]) < 0.985


@pytest.mark.parametrize(("effect", "seeds", "tests"), [(1.0, 5, 1), (2.0, 4, 8), (0.5, 20, 3)])
def test_the_chance_of_telling_is_that_of_simulated_trainings(effect, seeds, tests):
    values = np.random.default_rng(0).normal(effect, 1.0, (20_000, seeds))
    statistic = values.mean(1) / values.std(1, ddof=1) * seeds**0.5
    told = np.mean(stats.t.sf(statistic, seeds - 1) < claims.CHANCE / tests)
    assert power.chance_of_telling(effect, 1.0, seeds, tests) == pytest.approx(told, abs=0.01)


def test_seeds_and_effects_are_each_others_inverse():
    for tests in (1, 8):
        needed = power.seeds_needed(0.7, 1.0, tests)
        assert power.least_effect(1.0, needed, tests) <= 0.7 < power.least_effect(1.0, needed - 1, tests)
    assert power.least_effect(1.0, 2, 1) == math.inf
    assert power.seeds_needed(0.001, 1.0, 1) is None
    assert power.seeds_needed(1.0, 0.0, 1) == claims.LEAST_SEEDS


def test_a_pilot_says_what_a_larger_run_would_tell():
    low, high = intervals.of_mean(np.array([0.8, 1.0, 1.3, 0.9]))
    assert power.deviation_of(low, high, 4) == pytest.approx(np.std([0.8, 1.0, 1.3, 0.9], ddof=1))
    over = claims.Over(4, "300 images")
    given = [("rises", 0.5, 1.5), ("rises", -0.5, 1.0), ("the other way", -2.0, -1.0), ("tiny", math.nan, math.nan)]
    rows = [
        claims.row(claims.Claim("-", text, str(place), "-", over), "", low, high, claims.Steps(low, high))
        for place, (text, low, high) in enumerate(given)
    ]
    once = claims.Claim("-", "once", "", "-", claims.Over(1, "300 images"))
    rows.append(claims.row(once, "", 0.5, 1.0, claims.Steps(0.5, 1.0)))
    # Falls as claimed, which the displayed correlation does not say.
    falls = claims.Steps.of_correlation(intervals.Correlation(-0.8, -0.9, -0.6, 0.5), -1)
    rows.append(claims.row(claims.Claim("-", "falls", "", "-", over), "-0.8", -0.9, -0.6, falls))
    found = power.rows_of(claims.judged(rows), 10)
    assert found.pop()["seen"] == pytest.approx(np.tanh((np.arctanh(0.9) + np.arctanh(0.6)) / 2))
    assert [row["claim"] for row in found] == ["rises", "the other way"]
    assert found[0]["seen"] == 0.25
    assert found[0]["seeds"] > 10
    assert found[0]["told"] > 0.25
    assert "other way" in found[1]["seeds"]
    name, recorded = power.pilot(RECORDS, "manifold_distance", "digits")
    assert name == "manifold_distance-digits"
    assert all(row["seeds"] <= 10 for row in power.rows_of(recorded, 5))
    assert power.pilot(RECORDS, "manifold_distance", "no-such-set") is None


@pytest.mark.parametrize("name", ["faithfulness-digits", "roar_kar-digits", "robustness-digits"])
def test_the_order_of_seeds_changes_no_verdict(name):
    """A claim is about all trainings of a kind: none may hang on which of them comes first or last."""
    results = json.loads((RECORDS / name / "results.json").read_text())
    one = experiment.named(results["experiment"])
    config, arrays = records.config_of(one, results["config"]), runs.read_arrays(RECORDS / name / "measurements.npz")
    specs = specs_of(config)
    turned = [spec._replace(seed=config.network_seeds - 1 - spec.seed) for spec in specs]
    renamed = {spec.name: other.name for spec, other in zip(specs, turned, strict=True)}
    changed = {}
    for field, values in arrays.items():
        head, _, tail = field.rpartition("/")
        if field == "retrainings":
            pairs = [text.split(": ") for text in values.tolist()]
            values = np.array([f"{renamed[network]}: {rest}" for network, rest in pairs])
        elif len(values) == len(specs):
            values = values[[specs.index(other) for other in turned]]
        changed[f"{head}/{renamed[tail]}" if tail in renamed else field] = values
    first, second = (experiment.judge(one, config, given)["claims"] for given in (arrays, changed))
    assert [row["verdict"] for row in first] == [row["verdict"] for row in second]
    for bound in ("low", "high"):
        np.testing.assert_allclose(*([row[bound] or 0.0 for row in rows] for rows in (first, second)), atol=1e-6)
