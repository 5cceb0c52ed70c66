"""The three experiments on the neighbours, small: they run, go on, and their claims say what was measured."""

import json

import numpy as np
import pytest

from experiments import refinement, ways_to_train
from experiments.harness import claims

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
    assert "What was published, and what was found" in page
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


def test_the_strength_nearest_in_clean_accuracy_is_taken():
    class Config:
        ways, network_seeds = ("standard", "pgd", "cure"), 2

    accuracies = {"standard": [0.99], "pgd": [0.97, 0.9, 0.8], "cure": [0.95, 0.91, 0.6]}
    members = ways_to_train.members_of(Config)
    hits = np.zeros((len(members), 100), bool)
    for place, one in enumerate(members):
        hits[place, : round(100 * accuracies[one.way][one.strength])] = True
    chosen = ways_to_train.chosen_of(Config, {"held_hits": hits})
    assert {way: members[places[0]].strength for way, places in chosen.items()} == {"standard": 0, "pgd": 1, "cure": 1}
    assert [len(places) for places in chosen.values()] == [2, 2, 2]


def test_the_least_relevant_share_is_flagged():
    values = np.arange(16.0).reshape(4, 4)
    flagged = np.asarray(refinement.flagged_of(values, 0.25))
    assert flagged.sum() == 4
    assert flagged[0].all()
