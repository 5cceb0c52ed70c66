"""Runs that are killed, stopped, damaged or out of room, and what is read of finished ones."""

import json
import random
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, manifolds, networks, runs, stacking, training
from robgrad import data as data_sets

MODEL = networks.digits_cnn()
STEP = training.classifier_step(MODEL, attacks.pgd(attacks.L2, attacks.cross_entropy, 2, random_start=True))
NAME = "manifold_distance"
RUN = [
    *("--norms=l2", "--train_losses=xent", "--l2_epsilons=0.5,1", "--analysis_losses=xent", "--chunk=16"),
    *("--train_examples=200", "--test_examples=20", "--epochs=2", "--standard_epochs=2", "--attack_steps=2"),
    *("--vae_gan_epochs=3", "--analysis_steps=2", "--pgd_steps=2", "--attacked_examples=3", "--checkpoint_every=3"),
]


def start(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return stacking.stack([training.init_classifier(MODEL, (8, 8, 1), key) for key in keys])


def fit(states, data, **options):
    numbers = training.StepSizes(jnp.array([0.2, 0.4]), jnp.full(2, 0.5), jnp.full(2, 1e-3))
    options = {"mesh": stacking.device_mesh(2, 10), "batch_size": 10, "epochs": 2, **options}
    return training.fit(STEP, states, numbers, data, **options)


def equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one.variables, two.variables)


@pytest.fixture(scope="module")
def data(digits):
    return data_sets.Split(*(leaf[:100] for leaf in digits.train))


@pytest.fixture(scope="module")
def whole(data):
    return fit(start(), data)


@pytest.fixture
def stopped(tmp_path, data):
    """A stage stopped at step 9 of 20, with checkpoints at 3, 6 and 9, of which two are kept."""
    asked = []
    with runs.states_of(tmp_path / "stage", start()) as (states, save):
        every = training.Checkpoints(save, steps=3)
        with pytest.raises(training.StoppedError, match="stopped at step 9 of 20"):
            fit(states, data, checkpoints=every, stop=lambda: asked.append(0) or len(asked) == 4)
    return tmp_path / "stage"


def test_training_goes_on_from_a_checkpoint_to_the_bit(stopped, data, whole):
    assert sorted(int(path.name) for path in stopped.iterdir() if path.name.isdigit()) == [6, 9]
    with runs.states_of(stopped, start()) as (states, _):
        assert states.step.tolist() == [9, 9]
        equal(fit(states, data), whole)


@pytest.mark.parametrize("damage", ["truncated", "deleted", "flipped", "all"])
def test_a_damaged_checkpoint_is_said_and_passed_over(stopped, data, whole, damage, capsys):
    for step in (6, 9) if damage == "all" else (9,):
        for path in [path for path in (stopped / str(step)).rglob("*") if path.is_file() and path.stat().st_size > 200]:
            if damage == "deleted":
                path.unlink()
            else:
                path.write_bytes(flipped(path.read_bytes()) if damage == "flipped" else path.read_bytes()[:100])
    with runs.states_of(stopped, start()) as (states, save):
        assert states.step.tolist() == [0, 0] if damage == "all" else [6, 6]
        equal(fit(states, data, checkpoints=training.Checkpoints(save, steps=3)), whole)
    said = capsys.readouterr().err
    assert any(f"{stopped / '9'}: {what}" in said for what in ("cannot be read", "its values are not those"))


def flipped(contents, count=400):
    """A file with bytes changed at random places, its beginning and end left alone."""
    changed, generator = bytearray(contents), np.random.default_rng(0)
    for place in generator.integers(len(changed) // 4, 3 * len(changed) // 4, count):
        changed[place] ^= int(generator.integers(1, 256))
    return bytes(changed)


def test_flipped_bytes_of_networks_and_measurements_are_noticed(tmp_path):
    """Each file of a stack of networks in turn: what loads is what was saved."""
    about = {"kind": "classifier", "network": "paper", "image_shape": [8, 8, 1], "classes": 10}
    about["networks"] = [{"network": "standard"}, {"network": "l2-xent-1"}]
    whole = start().variables
    runs.save_stack(tmp_path / "whole", whole, about)
    noticed = 0
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    for number, file in enumerate(files):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(tmp_path / "whole", copy)
        (copy / file).write_bytes(flipped((copy / file).read_bytes()) if (copy / file).stat().st_size else b"x")
        try:
            loaded = runs.load_classifiers(copy).variables
        except runs.DamagedError:
            noticed += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, loaded, whole)
    assert noticed >= 2
    arrays = {"hits": np.arange(300) % 2 == 0, "distance": np.random.default_rng(0).normal(size=(30, 20))}
    runs.write_arrays(tmp_path / "measurements.npz", arrays)
    contents = (tmp_path / "measurements.npz").read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(300):
        changed = bytearray(contents)
        changed[generator.integers(len(changed))] ^= int(generator.integers(1, 256))
        (tmp_path / "measurements.npz").write_bytes(bytes(changed))
        found = runs.read_arrays(tmp_path / "measurements.npz")
        assert found is None or all(np.array_equal(found[name], values) for name, values in arrays.items())


def test_saving_copies_what_training_gives_away(tmp_path, data, whole):
    """Each save is still being written while the next segment overwrites the buffers."""
    with runs.states_of(tmp_path, start()) as (states, save):
        equal(fit(states, data, checkpoints=training.Checkpoints(save, steps=1)), whole)
    with runs.states_of(tmp_path, start()) as (states, _):
        equal(states, whole)


def test_networks_and_manifolds_are_read_back(tmp_path):
    params = start().variables
    names = ("standard", "l2-xent-1")
    about = {"kind": "classifier", "network": "paper", "image_shape": [8, 8, 1], "classes": 10}
    about["networks"] = [{"network": name} for name in names]
    runs.save_stack(tmp_path / "networks" / "two", params, about)
    model = manifolds.vae_gan_for((8, 8, 1))
    states = stacking.stack([manifolds.init_vae_gan(model, (8, 8, 1), jax.random.key(1))])
    about = {"kind": "manifold", "manifold": "vae-gan", "image_shape": [8, 8, 1], "training": {}}
    runs.save_stack(tmp_path / "networks" / "vae-gan", states.variables, about)

    image = jax.random.uniform(jax.random.key(2), (8, 8, 1), minval=-1.0)
    for index, name in enumerate(names):
        expected = networks.logits_fn(MODEL, stacking.replica(params, index))(image)
        np.testing.assert_array_equal(runs.load_network(tmp_path, name)(image), expected)
    expected = manifolds.from_vae_gan(model, stacking.replica(states.variables, 0)).project(image)
    np.testing.assert_array_equal(runs.load_manifold(tmp_path).project(image), expected)
    with pytest.raises(ValueError, match=r"standard: expected one image of shape \[8, 8, 1\], got \[28, 28, 1\]"):
        runs.load_network(tmp_path, "standard")(jnp.zeros((28, 28, 1)))

    with pytest.raises(runs.RunError, match="expected a network of l2-xent-1, standard, got 'nothing'"):
        runs.load_network(tmp_path, "nothing")
    with pytest.raises(runs.RunError, match="found none in"):
        runs.load_manifold(tmp_path / "networks")
    for path in (tmp_path / "networks" / "two" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(runs.RunError, match="cannot be read"):
        runs.load_network(tmp_path, "standard")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, run):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run(NAME, f"--workdir={workdir}", *RUN)
    return workdir


def rows(workdir):
    return json.loads((workdir / "results.json").read_text())["rows"]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_rows_of_an_uninterrupted_one(uninterrupted, tmp_path, start, run, kills):
    expected = uninterrupted
    moments = random.Random(kills)
    for _ in range(kills):
        process = start(NAME, f"--workdir={tmp_path / 'run'}", *RUN)
        # From the first sign of work, at any moment of it: also in the middle of a save.
        while not (tmp_path / "run").exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 12))
        process.kill()
        process.wait()
    run(NAME, f"--workdir={tmp_path / 'run'}", *RUN)
    assert rows(tmp_path / "run") == rows(expected)
    for path in runs.stages(expected):
        name = path.name
        load = runs.load_arrays if name == "vae-gan" else lambda path: runs.load_classifiers(path)[1:2]
        one, two = load(path)[-1], load(tmp_path / "run" / "networks" / name)[-1]
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_sigterm_saves_and_says_how_to_go_on(uninterrupted, tmp_path, start, run):
    expected, stopped = uninterrupted, tmp_path / "run"
    process = start(NAME, f"--workdir={stopped}", *RUN)
    while not list(stopped.glob("checkpoints/*/*/commit_success.txt")) + list(stopped.glob("networks/*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75
    assert "start the same command again to go on" in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    _, said = run(NAME, f"--workdir={tmp_path / 'other'}", f"--networks_from={expected}", *RUN)
    assert rows(tmp_path / "other") == rows(expected)
    assert "training" not in said


def test_damaged_networks_are_said_put_aside_and_trained_again(uninterrupted, tmp_path, run):
    """Beside a measurement cut short; what is whole stays."""
    damaged = tmp_path / "run"
    shutil.copytree(uninterrupted, damaged)
    (damaged / "results.json").unlink()
    measurements = damaged / "measurements.npz"
    measurements.write_bytes(measurements.read_bytes()[:1000])
    for path in (damaged / "networks" / "l2-xent" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:50])
    _, said = run(NAME, f"--workdir={damaged}", *RUN)
    assert "l2-xent: cannot be read" in said
    assert "put aside, doing this stage again" in said
    assert (damaged / "networks" / "l2-xent.unreadable").is_dir()
    assert "training l2-xent" in said
    assert "training standard" not in said
    assert rows(damaged) == rows(uninterrupted)


def test_networks_that_another_run_lacks_are_trained(uninterrupted, tmp_path, run):
    wider = [*RUN, "--l2_epsilons=0.5,1,2"]
    _, said = run(NAME, f"--workdir={tmp_path}", f"--networks_from={uninterrupted}", *wider)
    assert "training l2-xent: epoch" in said
    assert "training standard" not in said
    shared = [row for row in rows(tmp_path) if row["network"] != "l2-xent-2"]
    for one, two in zip(shared, rows(uninterrupted), strict=True):
        assert one["network"] == two["network"]
        assert one["median_distance"] == pytest.approx(two["median_distance"], rel=1e-5)


def test_a_full_disk_ends_in_one_line(tmp_path, run, uninterrupted):
    limit = ("bash", "-c", 'ulimit -f 20; exec "$@"', "bash")
    _, said = run(NAME, f"--workdir={tmp_path / 'run'}", *RUN, before=limit, status=1)
    assert "cannot be written" in said.strip().splitlines()[-1]


def test_networks_trained_otherwise_are_refused(tmp_path, run, uninterrupted):
    _, said = run(NAME, f"--workdir={tmp_path}", f"--networks_from={uninterrupted}", *RUN, "--epochs=1", status=1)
    assert "was trained with epochs = 2, this run wants 1" in said


def test_networks_of_another_data_set_are_refused(tmp_path, refused, uninterrupted, colour_file):
    given = [f"--workdir={tmp_path / 'run'}", f"--networks_from={uninterrupted}", f"--dataset={colour_file}"]
    said = refused(NAME, *given, *(one for one in RUN if "examples" not in one), "--train_examples=100")
    assert "was trained with" in said
    assert not (tmp_path / "run" / "networks").exists()


def test_large_stacks_lie_in_files_that_travel(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**31, (3, 3136, 4096), np.int32)
    runs.save_stack(tmp_path / "large", {"kernel": values}, {"kind": "other"})
    sizes = [path.stat().st_size for path in (tmp_path / "large").rglob("*") if path.is_file()]
    assert sum(sizes) > 0.8 * values.nbytes > 2**26
    assert max(sizes) < 2**26


def test_classifiers_by_name():
    """Some of several stacks, in another order, are the same networks under their names."""
    image = jnp.ones((8, 8, 1)) / 3
    stacks = [
        runs.Classifiers(MODEL, start(seed).variables, names) for seed, names in ((0, ("a", "b")), (1, ("c", "d")))
    ]
    every = runs.joined(stacks)
    some = every.take([3, 0])
    assert every.names == ("a", "b", "c", "d")
    assert some.names == ("d", "a")
    for name, (stack, place) in {"d": (1, 1), "a": (0, 0)}.items():
        own = networks.logits_fn(MODEL, stacking.replica(stacks[stack].variables, place))
        np.testing.assert_array_equal(some.logits_fn(name)(image), own(image))
    with pytest.raises(ValueError, match="expected a network of d, a, got 'b'"):
        some.logits_fn("b")
