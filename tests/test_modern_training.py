"""Today's recipe with parts left out: what is kept is what was judged, and the page shows the course."""

import json

import numpy as np
import pytest

from experiments import manifold_distance, modern_training
from experiments.harness import experiment
from experiments.harness.settings import config, presets
from experiments.harness.training import stages
from robgrad import attacks, runs, stacking, training
from robgrad import data as data_sets

SMALL = [
    *("--network_seeds=2", "--epochs=3", "--train_examples=200", "--held_out=100", "--test_examples=40"),
    *("--attacked_examples=10", "--attack_steps=2", "--without=schedule,all", "--batch_size=20"),
]


def test_both_epochs_are_judged_and_the_best_is_the_one_that_the_curve_says(tmp_path, run, digits):
    printed, _ = run("modern_training", *SMALL, f"--workdir={tmp_path}")
    assert "without schedule" in printed
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["recipe"], row["kept"]): row for row in results["rows"]}
    assert [*rows] == [
        (one, kept) for one in ("all parts", "without schedule", "plain Adam") for kept in ("last", "best")
    ]
    assert {"recipes.svg", "held_out.svg"} <= {*results["figures"]}
    assert "after each epoch" in (tmp_path / "report.html").read_text()
    curves = {name: values for name, values in np.load(tmp_path / "measurements.npz").items() if "held_out/" in name}
    assert len(curves) == 6
    kept = runs.load_classifiers(tmp_path / "networks" / "plain-Adam")
    held = data_sets.Split(*(leaf[:100] for leaf in digits.train))
    numbers = training.StepSizes(*(np.full(4, number, np.float32) for number in (0.2, 0.05, 1e-3)))
    mesh = stacking.device_mesh(4, 100)
    score = training.held_out(kept.network, attacks.pgd("linf", attacks.cross_entropy, 10), held, numbers, mesh)
    found = dict(zip(kept.names, np.asarray(score(kept.variables)), strict=True))
    for seed in range(2):
        curve = curves[f"held_out/plain Adam seed {seed} best"]
        assert found[f"plain Adam seed {seed} best"] == pytest.approx(curve.max(), abs=0.011)
        assert found[f"plain Adam seed {seed} last"] == pytest.approx(curve[-1], abs=0.011)


def test_without_all_its_parts_the_recipe_is_plain_adam():
    common = {"preset": "quick", "seed": 0, "matmul_precision": "float32"}
    whole = presets.made(
        modern_training.ModernConfig, modern_training.EXPERIMENT.presets, common, {}, data_sets.load("digits")
    )
    last = modern_training.recipes_of(whole)["plain Adam"]
    assert config.recipe_of(last, "linf") == training.Recipe("linf")
    assert (last.learning_rate, last.weight_decay) == (1e-3, 0.0)


def test_the_modern_preset_is_the_published_recipe(digits):
    published = training.Recipe("l2", optimizer="sgd", schedule="piecewise", augmentation=("crop:4", "flip"))
    photographs = digits._replace(name="cifar10")
    values = manifold_distance.EXPERIMENT.presets["modern"]["cifar10"]
    assert values["epochs"] * (values["train_examples"] // values["batch_size"]) == 200 * 382
    names = {one.name for one in config.settings_of(config.TrainingConfig)}
    own = config.TrainingConfig(
        preset="modern", seed=0, matmul_precision="float32", dataset=photographs.name,
        **{name: value for name, value in values.items() if name in names},
    )  # fmt: skip
    assert config.recipe_of(own, "l2") == published
    assert own.keep == "best"


def test_a_page_shows_the_course_of_every_training_that_looks_for_its_best_epoch(tmp_path):
    curves = {f"held_out/{name}": np.linspace(0.2, top, 4) for name, top in (("standard", 0.3), ("l2-xent-1", 0.5))}
    plain = experiment.Experiment(
        name="-", title="-", question="-", config=config.Config, measure=lambda run: {},
        tabulate=lambda *_: {}, claim=lambda *_: (), draw=lambda *_: None, columns={}, captions={},

    )  # fmt: skip
    plain.draw_all(tmp_path, None, {}, {})
    assert not [*tmp_path.iterdir()]
    plain.draw_all(tmp_path, None, curves, {})
    assert (tmp_path / "held_out.svg").stat().st_size > 1000
    assert stages.curves_of(tmp_path) == {}
