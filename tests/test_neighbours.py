"""The three experiments on the neighbours, small: they run, go on, and their claims say what was measured."""

import json

import numpy as np
import pytest

from experiments import refinement, ways_to_train
from experiments.harness.training import guidance, ways
from experiments.harness.verdicts import claims

SMALL = [
    *("--train_examples=100", "--test_examples=20", "--epochs=1", "--standard_epochs=1", "--attack_steps=2"),
    *("--network_seeds=2", "--attacked_examples=3", "--measured_examples=5", "--held_out=40", "--rounds=1"),
    *("--ways=standard,pgd,gradient-penalty,scorpio-1", "--guides=lime,true-mask", "--lime_samples=10"),
    *("--l2_epsilons=0.25", "--linf_epsilons=0.05", "--attributions=gradient,deep_lift", "--pca_dimensions=5"),
]


def test_all_three_run_and_make_one_page(run, tmp_path):
    arguments = ["--dataset=shapes-16", f"--workdir={tmp_path / 'all'}", *SMALL]
    printed, _ = run("neighbours", *arguments)
    assert printed.count("claims") == 3
    for name in ("ways_to_train", "refinement", "expert_regions"):
        results = json.loads((tmp_path / "all" / f"{name}-shapes-16" / "results.json").read_text())
        assert results["rows"]
        assert all(claim["verdict"] in claims.MARKS for claim in results["claims"])
    ways = json.loads((tmp_path / "all" / "ways_to_train-shapes-16" / "results.json").read_text())
    assert {row["way"]: row["fraction_exact"] > 0 for row in ways["rows"]} == {
        name: True for name in ("standard", "pgd", "gradient-penalty", "scorpio-1")
    }
    page = (tmp_path / "all" / "report.html").read_text()
    assert "What was found" in page
    again, said = run("neighbours", *arguments)
    assert again.count("finished already") == 3
    assert "training" not in said


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("expert_regions", ["--dataset=digits"], "--dataset=digits: expected a data set with masks of what matters"),
        ("ways_to_train", ["--ways=pgdd"], "expected some of standard, pgd, single-step"),
        ("refinement", ["--flagged_share=1.5"], "flag --flagged_share=1.5: expected a finite number > 0 and < 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(run, tmp_path, program, arguments, message):
    _, said = run(program, f"--workdir={tmp_path / 'run'}", *arguments, status=1)
    assert said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "run").exists()


class Ways:
    ways, network_seeds, auto_attack, attack_steps = ("standard", "pgd", "cure", "scorpio-1"), 3, "standard", 10


def hits_of(accuracies, images=1000):
    members = ways.members_of(Ways)
    hits = np.zeros((len(members), images), bool)
    for place, one in enumerate(members):
        hits[place, : round(images * accuracies[one.way][one.strength])] = True
    return hits


def test_the_strongest_of_equal_clean_accuracy_is_taken():
    accuracies = {
        "standard": [0.99],
        "pgd": [0.97, 0.9, 0.8],
        "cure": [0.95, 0.895, 0.88],
        "scorpio-1": [0.8, 0.85, 0.7],
    }
    taken = ways.taken_of(Ways, hits_of(accuracies))
    assert taken == {"standard": (0, True), "pgd": (1, True), "cure": (1, True), "scorpio-1": (1, False)}
    level = {"standard": [0.9], "pgd": [0.9] * 3, "cure": [0.9] * 3, "scorpio-1": [0.9] * 3}
    taken = ways.taken_of(Ways, hits_of(level))
    assert [strength for strength, _ in taken.values()] == [0, 1, 2, 2]
    places = ways.chosen_of(Ways, {"held_hits": hits_of(level)})
    assert [len(members) for members in places.values()] == [3, 3, 3, 3]


def test_claims_on_ways_are_of_the_right_sign_and_not_judged_where_accuracies_differ():
    generator = np.random.default_rng(0)
    level = {"standard": [0.9], "pgd": [0.9] * 3, "cure": [0.9] * 3, "scorpio-1": [0.9] * 3}
    robust = np.repeat([0.1, 0.8, 0.3, 0.6], 3)[:, None] > generator.random((12, 300))
    names = [member.name for member in ways.members_of(Ways)]
    arrays = {"held_hits": hits_of(level), "test_hits": hits_of(level), "robust_hits": robust, "road": robust * 1.0}
    arrays |= {"seconds": np.array([[1.0] * 3, [4.0, 4.1, 4.2], [2.0] * 3, [3.0] * 3])}
    arrays |= {f"notes/{name}": np.array([], str) for name in names}

    def verdicts():
        tables = ways_to_train.tabulate(Ways, arrays)
        judged = claims.judged(ways_to_train.claim(Ways, arrays, tables))
        return {(one["claim"], one["group"]): one["verdict"] for one in judged}

    found = verdicts()
    beats = "second-order training: one iteration beats gradient and curvature regularisation in robust accuracy"
    above = "a way to train is more robust than PGD training at equal clean accuracy (our test)"
    assert found[beats, "against cure"] == claims.HOLDS
    assert found[above, "scorpio-1"] == claims.FAILS
    masks = "second-order training avoids gradient masking: AutoAttack notes none"
    # That none of three was noted is no proof that none would be.
    assert found[masks, "scorpio-1"] == claims.UNTESTED
    arrays["notes/scorpio-1 weight 1 seed 1"] = np.array(["Square, which sees no gradient, broke 9 images"])
    arrays["held_hits"] = hits_of(level | {"cure": [0.8] * 3})
    found = verdicts()
    assert found[masks, "scorpio-1"] == claims.FAILS
    assert found[beats, "against cure"] == claims.UNTESTED


def test_claims_on_refinement_tell_what_was_published_from_ours():
    class Config:
        guides, network_seeds, auto_attack = ("lime",), 3, "short"

    generator = np.random.default_rng(0)
    rates = {"marked": (1, 1, 1), "removed": (0.5, 0.5, 0.9), "moved": (0.5, 0.5, 0.1), "robust": (0.2, 0.6, 0.6)}
    arrays = {f"hits/{name}": np.repeat(one, 3)[:, None] > generator.random((9, 400)) for name, one in rates.items()}
    # Each image under five corruptions counts once.
    arrays["hits/corrupted"] = np.tile(arrays["hits/removed"], (1, 5))
    arrays |= {"guides": np.array(["lime"]), "flagged/lime": np.zeros(3)}
    refinement.replace, kept = (lambda config, **changes: config), refinement.replace
    try:
        found = claims.judged(refinement.claim(Config, arrays, {}))
    finally:
        refinement.replace = kept
    said = {one["claim"]: (one["verdict"], claims.is_papers(one)) for one in found}
    assert said["refined, robust accuracy rises, against standard training"] == (claims.HOLDS, True)
    assert said["refined, robust accuracy rises, against adversarial training (our test)"][1] is False
    assert said["refined, accuracy with the mark moved rises, against standard training (our test)"][0] == claims.FAILS
    assert said["refined, accuracy under corruptions of severity 3 rises, against standard training"][1] is True
    corrupted = next(one for one in found if "corruptions" in one["claim"])
    removed = next(one for one in found if "without the mark rises" in one["claim"])
    assert corrupted["low"] == pytest.approx(removed["low"])
    assert "400 images, 5 corruptions each" in corrupted["over"]


def test_flagged_marks_are_looked_for_where_they_are():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 0:2, 4:6] = True
    assert guidance.flagged_marks(masks, np.array([[0, 4], [6, 0]])) == 0.5


def test_the_least_relevant_share_is_flagged():
    values = np.arange(16.0).reshape(4, 4)
    flagged = np.asarray(guidance.flagged_of(values, 0.25))
    assert flagged.sum() == 4
    assert flagged[0].all()
