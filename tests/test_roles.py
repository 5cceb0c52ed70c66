"""One place to add a thing: a norm, an attack, an objective, a network, a manifold, in the library and in a program."""

import dataclasses
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import boundary_tilting, manifold_distance
from experiments.harness import experiment, running
from experiments.harness.settings import flags, presets
from experiments.harness.settings.options import Options
from robgrad import attacks, gradients, networks, runs, stacking, training
from robgrad import data as data_sets

TINY = [
    *("--train_examples=100", "--test_examples=20", "--epochs=1", "--standard_epochs=1", "--attack_steps=2"),
    *("--pgd_steps=2", "--analysis_steps=2", "--train_losses=xent", "--norms=l2", "--l2_epsilons=1,2"),
    *("--attacked_examples=3", "--denoiser_epochs=1", "--denoiser_batch_size=25", "--batch_size=25"),
]


def test_every_other_choice_at_once(colour_file, tmp_path, run):
    """Batch norm, TRADES, PCA, a denoiser, another attack, two seeds."""
    chosen = ["--network=wide-resnet-10-1", "--objective=trades", "--network_seeds=2"]
    first = tmp_path / "first"
    manifold = [
        "--manifold=pca,denoiser",
        "--analysis_losses=xent",
        "--analysis_attack=pgd-restarts",
        f"--workdir={first}",
    ]
    _, said = run("manifold_distance", f"--dataset={colour_file}", *chosen, *manifold, *TINY)
    results = json.loads((first / "results.json").read_text())
    assert [row["network_seeds"] for row in results["rows"]] == [2] * 6
    assert all(claim["over"].startswith("2 seeds, 20 images") for claim in results["claims"])
    assert "training l2-xent, 4 networks" in said
    # Its statistics have moved, and are what is loaded.
    about = json.loads((first / "config.json").read_text())["config"]
    assert (about["network"], about["objective"]) == ("wide-resnet-10-1", "trades")
    assert about["manifold"] == ["pca", "denoiser"]
    stack = runs.load_classifiers(first / "networks" / "l2-xent")
    assert stack.names == ("l2-xent-1", "l2-xent-1-seed1", "l2-xent-2", "l2-xent-2-seed1")
    means = [leaf for path, leaf in jax.tree.leaves_with_path(stack.variables["batch_stats"]) if "mean" in str(path)]
    assert all(bool(jnp.any(leaf != 0)) for leaf in means)


SMALL = {
    **{"train_examples": 100, "test_examples": 20, "epochs": 1, "standard_epochs": 1, "attack_steps": 2},
    **{
        "pgd_steps": 2,
        "attacked_examples": 3,
        "analysis_steps": 2,
        "train_losses": ("xent",),
        "analysis_losses": ("xent",),
    },
    **{"manifold": ("pca",), "batch_size": 25},
}


def made(digits, **given):
    common = {"preset": "quick", "seed": 0, "matmul_precision": "float32"}
    one = manifold_distance
    return presets.made(one.ManifoldConfig, one.EXPERIMENT.presets, common, SMALL | given, digits)


def test_a_second_run_in_one_process_has_other_options(digits, tmp_path):
    one = made(digits, norms=("l2",), radii={"l2": (1.0,)})
    run = running.run
    first = run(manifold_distance.EXPERIMENT, tmp_path / "one", one, Options(checkpoint_every="2"), digits)
    other = dataclasses.replace(one, seed=1, matmul_precision="bfloat16")
    options = Options(tensorboard=True, networks_from=None)
    second = run(manifold_distance.EXPERIMENT, tmp_path / "two", other, options, digits)
    assert first.results["rows"] != second.results["rows"]
    assert not (tmp_path / "one" / "tensorboard").exists()
    assert (tmp_path / "two" / "tensorboard" / "l2-xent").is_dir()
    third = run(manifold_distance.EXPERIMENT, tmp_path / "three", one, Options(networks_from=first.workdir), digits)
    assert third.results["rows"] == first.results["rows"]
    toy = boundary_tilting.ToyConfig(preset="quick", seed=0, matmul_precision="float32", repeats=2, points=200)
    assert run(boundary_tilting.EXPERIMENT, tmp_path / "toy", toy).results["config"]["matmul_precision"] == "float32"


def test_importing_starts_no_backend():
    """Programs set devices up, and join other processes, after everything is imported."""
    names = ", ".join(f"experiments.{one.name}" for one in experiment.every())
    asked = "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    subprocess.run([sys.executable, "-c", f"import {names}; {asked}"], check=True, cwd=Path(__file__).parent.parent)


def test_the_page_of_settings_says_only_what_an_experiment_takes():
    tables = presets.tables()
    every = {one.name: one for one in experiment.every() if not one.reads}
    assert set(tables) == {"shared", *every}
    taken = {name: {field.name for field in dataclasses.fields(one.config)} for name, one in every.items()}
    taken["shared"] = set().union(*taken.values())
    for name, by_preset in tables.items():
        for preset, by_set in by_preset.items():
            said = {key for values in by_set.values() for key in values}
            assert said <= taken[name], f"{name}.{preset}"
            assert set(by_set) <= {"any", *tables["shared"][preset]}, f"{name}.{preset}"


def test_every_setting_has_a_help_text_and_a_flag():
    for one in experiment.every():
        given = flags.Flags(one.title, [one.config], one.presets)
        free = {"preset", "seed", "matmul_precision", "dataset", "checksums"}
        for field in dataclasses.fields(one.config):
            if field.name in free:
                continue
            assert field.metadata.get("help"), f"{one.config.__name__}.{field.name} has no help text"
            name = (field.metadata["by_norm"] or field.name).format("l2")
            assert f"--{name}:" in given.help()
        assert one.columns
        assert one.captions
        assert one.takes


@pytest.mark.parametrize("program", [*(one.name for one in experiment.every()), "reproduce", "benchmark", "document"])
def test_every_flag_of_every_program_is_explained(program, monkeypatch, capsys):
    """By `--help`, each once, in a sentence or more."""
    monkeypatch.delitem(sys.modules, f"experiments.{program}", raising=False)
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"experiments.{program}", run_name="__main__")
    assert ended.value.code == 0
    shown = re.findall(r"^  --(\S+): (.*(?:\n      .*)*)", capsys.readouterr().out, re.MULTILINE)
    names = [name for name, _ in shown]
    assert len({*names}) == len(names)
    assert {"workdir", "seed", "verbose"} <= {*names}
    for name, text in shown:
        assert re.match(r"[A-Z'].{9}", text.replace("\n     ", "")), f"--{name}: {text}"


@pytest.mark.parametrize("flag", ["-h", "--help", "--helpshort"])
def test_help_shows_this_programs_flags(flag, run):
    printed, _ = run("roar_kar", flag)
    assert "Section 3.2" in printed
    assert "--retraining_seeds" in printed
    assert "--vae_gan_epochs" not in printed


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize("norm", attacks.NORMS)
def test_every_attack_plays_its_role(name, norm):
    """Within ball and range, never worse than the image, unmoved at epsilon 0, the same for one key."""
    network = networks.digits_cnn()
    own = networks.logits_fn(network, networks.init(network, jax.random.key(1), (8, 8, 1)))
    images = jax.random.uniform(jax.random.key(2), (4, 8, 8, 1), minval=-1.0, maxval=1.0)
    labels = jax.vmap(lambda x: own(x).argmax())(images)
    attack = attacks.ATTACKS[name](norm, attacks.cross_entropy, 5)
    run = jax.jit(jax.vmap(lambda key, x, y, e: attack(key, own, x, y, e, e / 2)))
    keys, epsilon = jax.random.split(jax.random.key(0), 4), jnp.array([0.0, 0.1, 0.5, 1.0])
    attacked = run(keys, images, labels, epsilon)
    lengths = jax.vmap(attacks.NORMS[norm].length)(attacked - images)
    assert jnp.all(lengths <= epsilon * (1 + 1e-5) + 1e-6)
    assert jnp.all(jnp.abs(attacked) <= 1)
    np.testing.assert_allclose(attacked[0], images[0], atol=1e-7)
    loss = jax.vmap(lambda x, y: attacks.cross_entropy(own(x), y))
    assert jnp.all(loss(attacked, labels)[1:] > loss(images, labels)[1:])
    np.testing.assert_array_equal(attacked, run(keys, images, labels, epsilon))


def test_restarts_keep_the_worst():
    """A loss with a near low hill, where the image stands, and a far high one, that some random starts reach."""
    hills = lambda x: jnp.exp(-20 * (x[0] - 0.1) ** 2) + 3 * jnp.exp(-20 * (x[0] + 0.6) ** 2)  # noqa: E731
    logits_fn = lambda x: jnp.stack([0.0, hills(x)])  # noqa: E731
    margin = attacks.cw_margin
    end = lambda attack: hills(attack(jax.random.key(0), logits_fn, jnp.zeros(1), 0, 0.9, 0.05))  # noqa: E731
    once = end(attacks.pgd("linf", margin, 40))
    assert once == pytest.approx(1.0, abs=0.1)
    assert end(attacks.pgd_restarts("linf", margin, 40, restarts=10)) > 2.5
    assert end(attacks.pgd_restarts("linf", margin, 40, restarts=1)) == once
    with pytest.raises(ValueError, match="expected at least 1 restart"):
        attacks.pgd_restarts("linf", margin, 1, restarts=0)
    with pytest.raises(ValueError, match="expected a norm of l1, l2, linf"):
        attacks.pgd("l3", margin, 1)


@pytest.mark.parametrize("name", training.OBJECTIVES)
def test_every_objective_plays_its_role(name, digits):
    """Under no attack all descend the cross-entropy; a few epochs learn."""
    network = networks.digits_cnn()
    step = training.Recipe("l2", name, attack_steps=2).step(network, 40)
    start = stacking.stack([training.init_classifier(network, (8, 8, 1), jax.random.key(0))] * 2)
    sizes = training.StepSizes(jnp.array([0.0, 0.5]), 0.25, 3e-3, 1.0)
    train = data_sets.Split(*(leaf[:500] for leaf in digits.train))
    seen = []
    options = {"mesh": stacking.device_mesh(2, 50), "batch_size": 50, "epochs": 4, "progress": seen.append}
    training.fit(step, start, sizes, train, **options)
    assert np.all(seen[-1].metrics["accuracy"] > 0.7)


def test_trades_is_its_formula():
    """CE(f(x), y) + beta KL(softmax f(x) || softmax f(x')) and its gradient, in double precision by differences."""
    generator = np.random.default_rng(0)
    weights, images = generator.normal(size=(4, 3)), generator.normal(size=(5, 4))
    moved, labels, beta = images + 0.1, np.arange(5) % 3, 2.5

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def expected(weights):
        clean, attacked = softmax(images @ weights), softmax(moved @ weights)
        return np.mean(-np.log(clean[range(5), labels]) + beta * np.sum(clean * np.log(clean / attacked), axis=1))

    def ours(weights):
        passes = training.Passes(
            lambda variables, x: (x @ variables, variables),
            lambda x: x @ weights,
            lambda x, target: jnp.asarray(moved),
            None,
        )
        numbers = training.StepSizes(weight=beta)
        return training.trades()(weights, passes, jnp.asarray(images), jnp.asarray(labels), numbers).losses.mean()

    got, slope = jax.value_and_grad(ours)(jnp.asarray(weights, jnp.float32))
    assert got == pytest.approx(expected(weights), rel=1e-5)
    for place in ((0, 0), (2, 1), (3, 2)):
        step = np.zeros_like(weights)
        step[place] = 1e-6
        difference = (expected(weights + step) - expected(weights - step)) / 2e-6
        assert slope[place] == pytest.approx(difference, rel=1e-3, abs=1e-5)


def test_a_random_projection_keeps_a_gradients_length_on_average():
    logits_fn = lambda x: jnp.stack([x.sum(), 0.0])  # noqa: E731
    image = jnp.full((4, 4, 1), 0.01)
    keys = jax.random.split(jax.random.key(0), 2000)
    maps = jax.vmap(lambda key: gradients.gradient_random_projection(key, logits_fn, image))(keys)
    squares = jnp.sum(maps**2, axis=(1, 2)).mean() / jnp.sum(gradients.gradient(keys[0], logits_fn, image) ** 2)
    # Of 10 Gaussian directions in 16 dimensions: 1 + (16 + 1) / 10.
    assert squares == pytest.approx(2.7, rel=0.1)
