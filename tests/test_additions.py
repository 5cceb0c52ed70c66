"""To add one of anything touches one file and one row: each is added in a module of its own, and run by the programs.

The module is what a user would write; nothing else knows of what it adds, neither the flags nor the programs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ADDED = '''
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robgrad import attacks, data, gradients, manifolds, networks, training
from robgrad.data import sources
from robgrad.gradients import named
from robgrad.training import objectives, optimizers


def blob(label, code):
    """A data set whose manifold is known: bright or dark bumps by class, a place and a level by code."""
    across, down = jnp.meshgrid(jnp.linspace(-1, 1, 8), jnp.linspace(-1, 1, 8), indexing="ij")
    bump = jnp.exp(-4 * ((across - 0.4 * code[0]) ** 2 + (down - 0.4 * code[1]) ** 2))
    sign = jnp.asarray([-1.0, 0.5, 1.0])[label]
    return (sign * (0.6 + 0.2 * code[2]) * bump)[..., None]


def blobs():
    codes = np.random.default_rng(0).uniform(-1, 1, (160, 3)).astype(np.float32)
    labels = (np.arange(160) % 3).astype(np.int32)
    images = np.asarray(jax.vmap(blob)(labels, codes))
    train, test = data.Split(images[:120], labels[:120]), data.Split(images[120:], labels[120:])
    truth = data.Truth(blob, codes[:120], codes[120:], box=1.0)
    return data.Dataset("blobs", ("dark", "dim", "bright"), train, test, truth)


def both():
    """An objective with a number of its own: the attacked image's loss, and so much of the clean one's."""
    def objective(variables, passes, images, labels, numbers):
        clean, variables = passes.train(variables, images)
        logits, variables = passes.train(variables, passes.perturb(images, labels))
        loss = jax.vmap(attacks.cross_entropy)
        return objectives.Outcome(loss(logits, labels) + numbers.weight * loss(clean, labels), logits, variables)
    return objective


def fit_line(dataset, settings):
    """A manifold with a setting of its own: the leading directions of so many images."""
    return manifolds.fit_pca(dataset.train.images[: settings["line_images"]], 1)


def line_shapes(image_shape, settings):
    shape = jax.ShapeDtypeStruct(tuple(image_shape), jnp.float32)
    return manifolds.Plane(shape, jax.ShapeDtypeStruct((int(np.prod(image_shape)), 1), jnp.float32))


sources.EMBEDDED["blobs"] = blobs
networks.NETWORKS["thin"] = lambda image_shape, classes: networks.MLP((16,), classes)
attacks.LOSSES["doubled"] = lambda logits, label: 2 * attacks.cross_entropy(logits, label)
attacks.ATTACKS["twice"] = lambda norm, loss, steps: attacks.pgd(norm, loss, 2 * steps)
attacks.NORMS["other-l2"] = attacks.L2
training.OBJECTIVES["both"] = training.ObjectiveKind(lambda norm: both(), weight=0.5, settings=("objective_weight",))
training.AUGMENTATIONS["shade"] = lambda by=1: lambda key, image: 0.9 * image
optimizers.OPTIMIZERS["sign"] = lambda momentum: [optimizers._decayed(), optax.scale_by_sign()]
manifolds.KINDS["line"] = manifolds.Kind(
    "a line", {"line_images": manifolds.Setting("Images that make the line.", 50)}, None, fit_line, line_shapes,
    lambda image_shape, plane, key, settings: manifolds.pca(manifolds.Plane(*plane)),
    limits=lambda pixels, settings: [("line_images", settings["train_examples"], "there are no more")],
)
named.ATTRIBUTIONS["squared"] = named.SIGNED["squared"] = gradients.of_gradient(pixels=lambda g: (g**2).sum(-1))
'''
RUNNER = """
import runpy, sys
from pathlib import Path
from experiments.harness.settings import presets
import added
page = Path("page.toml")
page.write_text(presets.SETTINGS.read_text() + Path("row.toml").read_text())
presets.SETTINGS = page
sys.argv = sys.argv[1:]
runpy.run_module(f"experiments.{sys.argv[0]}", run_name="__main__")
"""
# A paper-size preset of the new set.
ROW = """
[shared.paper.blobs]
train_examples = 120
test_examples = 20
radii = { l2 = [0.5, 1.0], other-l2 = [0.5, 1.0] }
step_sizes = { l2 = 0.5, other-l2 = 0.5 }
attack_steps = 2
standard_epochs = 2
epochs = 2
batch_size = 30
attacked_examples = 10
robust_epsilon = 0.5
pgd_steps = 2
"""
SAME = [
    *("--dataset=blobs", "--preset=paper", "--network=thin", "--train_attack=twice", "--objective=both"),
    *("--norms=l2,other-l2", "--train_losses=doubled", "--optimizer=sign", "--augmentation=shade:2"),
]


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """A folder with the module, and how a program is run that knows it."""
    folder = tmp_path_factory.mktemp("added")
    for name, text in (("added.py", ADDED), ("runner.py", RUNNER), ("row.toml", ROW)):
        (folder / name).write_text(text)

    def run(program, *arguments):
        paths = os.pathsep.join([str(folder), str(Path(__file__).parent.parent)])
        command = [sys.executable, "runner.py", program, *SAME, *arguments]
        return subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
        )

    run.folder = folder
    return run


def test_what_is_added_runs_in_a_program(added):
    """A known set, its preset; network, attack, loss, norm, objective, augmentation, optimizer, manifold."""
    few = ["--analysis_steps=2", "--analysis_epsilon=1", "--analysis_losses=doubled", "--line_images=40"]
    done = added("manifold_distance", "--manifold=line,exact", "--workdir=known", *few)
    assert done.returncode == 0, done.stderr
    results = json.loads((added.folder / "known/results.json").read_text())
    config = results["config"]
    assert (config["objective_weight"], config["line_images"], config["epochs"]) == (0.5, 40, 2)
    rows = {(row["manifold"], row["network"]): row for row in results["rows"]}
    assert {name for name, _ in rows} == {"line", "exact"}
    # On the exact manifold the set's own images lie, by its own decoder.
    assert rows["exact", "standard"]["clean_median_distance"] == pytest.approx(0, abs=1e-3)
    assert rows["line", "standard"]["tangent_fraction_chance"] == pytest.approx(1 / 64)
    assert rows["exact", "standard"]["tangent_fraction_chance"] == pytest.approx(3 / 64)
    # Two names of one norm, one network.
    one, two = (rows["line", f"{norm}-doubled-1"]["tangent_fraction"] for norm in ("l2", "other-l2"))
    assert one == pytest.approx(two, rel=1e-4)


def test_an_added_attribution_is_ranked_by(added):
    asked = ["--attributions=squared", "--epsilons=1", "--percentiles=50", "--retraining_seeds=1"]
    short = ["--retraining_epochs=1", "--retraining_batch_size=30", "--networks_from=known", "--workdir=roar"]
    done = added("roar_kar", *asked, *short)
    assert done.returncode == 0, done.stderr
    assert "training standard" not in done.stderr
    assert {row["attribution"] for row in json.loads((added.folder / "roar/results.json").read_text())["rows"]} == {
        "squared",
        "random",
    }


def test_what_is_added_is_checked_and_explained(added):
    refused = added("manifold_distance", "--manifold=line", "--line_images=121")
    assert refused.returncode == 1
    assert refused.stderr.strip() == "error: --line_images=121: expected at most 120 (there are no more)"
    helped = " ".join(added("manifold_distance", "--help").stdout.split())
    flags = dict(one.split(": ", 1) for one in helped.split(" --") if ": " in one)
    assert flags["line_images"] == "Images that make the line. Default: 50."
    assert "other-l2_epsilons" in flags
    for flag, name in (("network", "thin"), ("train_attack", "twice"), ("objective", "both"), ("optimizer", "sign")):
        assert f", {name}." in flags[flag]
