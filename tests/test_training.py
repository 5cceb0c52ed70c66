"""Stacks against single networks, meshes against one device, segments, order and failure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, networks, stacking, training
from robgrad import data as data_sets

MODEL = networks.CNN(((4,),), 3, 8, 10)
STEP = training.classifier_step(MODEL, attacks.pgd(attacks.L2, attacks.cross_entropy, 2, random_start=True))
STANDARD = training.classifier_step(MODEL, attacks.no_attack)


def one_device(stack=1, batch=10):
    return stacking.device_mesh(stack, batch, jax.devices()[:1])


def states(count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return stacking.stack([training.init_classifier(MODEL, (8, 8, 1), key) for key in keys])


def numbers(count):
    sizes = (jnp.linspace(0.1, 1.0, count), jnp.full(count, 0.5), jnp.full(count, 1e-2), jnp.zeros(count))
    return training.StepSizes(*sizes)


def close(one, two, atol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, two)


@pytest.fixture(scope="module")
def data(digits):
    return data_sets.Split(*(leaf[:64] for leaf in digits.train))


def test_a_stack_equals_its_networks_alone(data):
    together = training.fit(STEP, states(3), numbers(3), data, mesh=one_device(3), batch_size=10, epochs=1)
    for index in range(3):
        one = lambda tree, index=index: jax.tree.map(lambda leaf: leaf[index : index + 1], tree)  # noqa: E731
        alone = training.fit(STEP, one(states(3)), one(numbers(3)), data, mesh=one_device(), batch_size=10, epochs=1)
        close(alone.variables, one(together.variables))


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize(
    ("count", "batch", "shape"), [(2, 10, (2, 1)), (1, 10, (1, 2)), (1, 7, (1, 2)), (3, 4, (2, 1))]
)
def test_any_mesh_gives_the_numbers_of_one_device(data, count, batch, shape):
    """Also where neither the stack nor the batch divides it."""
    grid = np.array(jax.devices()[:2]).reshape(shape)
    mesh = jax.sharding.Mesh(grid, (stacking.REPLICA, stacking.DATA))
    fit = lambda mesh: training.fit(STEP, states(count), numbers(count), data, mesh=mesh, batch_size=batch, epochs=1)  # noqa: E731
    close(fit(mesh).variables, fit(one_device()).variables)


def test_the_mesh_spreads_replicas_first():
    devices = list(range(8))
    shape = lambda replicas, batch: tuple(stacking.device_mesh(replicas, batch, devices).shape.values())  # noqa: E731
    assert shape(8, 100) == (8, 1)
    assert shape(16, 100) == (8, 1)
    assert shape(1, 100) == (1, 8)
    assert shape(3, 96) == (1, 8)
    assert shape(13, 1) == (8, 1)


def test_host_devices_share_no_batch_that_does_little_with_each_parameter():
    """Each would read all parameters; stacks that divide are split, others leave devices out."""
    devices = jax.devices()[:2]

    def shape(replicas, batch):
        return tuple(stacking.device_mesh(replicas, batch, devices, intensity=10.0).shape.values())

    assert [shape(replicas, 100) for replicas in (1, 2, 3, 20)] == [(1, 2), (2, 1), (1, 2), (2, 1)]
    assert [shape(replicas, 20) for replicas in (1, 2, 3, 19, 20)] == [(1, 1), (2, 1), (1, 1), (2, 1), (2, 1)]


def test_intensity_is_operations_over_parameters():
    """Of products by hand; of convolutions without what falls on their padding."""
    matrix = jnp.ones((30, 20))
    assert stacking.intensity(lambda x: x @ matrix, jnp.ones(30)) == pytest.approx(2, rel=0.01)
    assert stacking.intensity(lambda matrix, x: x @ matrix, matrix, jnp.ones((7, 30))) == pytest.approx(14, rel=0.01)
    operations = 2 * (64 * 9 * 16 + 64 * 9 * 16 * 32 + 512 * 64 + 640)
    once = networks.intensity(networks.digits_cnn(), (8, 8, 1))
    assert once == pytest.approx(operations / 38282, rel=0.25)
    # A training step's update reads the parameters as well, which its attack's passes outweigh.
    standard, robust = (networks.intensity(networks.digits_cnn(), (8, 8, 1), steps) for steps in (0, 40))
    assert (standard, robust) == (pytest.approx(once * 3 / 17), pytest.approx(once * 83 / 97))
    # Parameters beyond what a cache holds count three times.
    large = jax.ShapeDtypeStruct((2**12, 2**11), jnp.float32)
    image = jax.ShapeDtypeStruct((2**12,), jnp.float32)
    assert stacking.intensity(lambda matrix, x: x @ matrix, large, image) == pytest.approx(1, rel=0.01)


def test_segments_change_nothing(data):
    """Two epochs at once equal one epoch and then another."""
    options = {"mesh": one_device(), "batch_size": 10}
    whole = training.fit(STEP, states(1), numbers(1), data, epochs=2, **options)
    half = training.fit(STEP, states(1), numbers(1), data, epochs=1, **options)
    close(training.fit(STEP, half, numbers(1), data, epochs=2, **options).variables, whole.variables, atol=0)


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own(data):
    seen = []

    def step(state, _, batch):
        jax.debug.callback(lambda rows: seen.append(np.array(rows)), batch.examples, ordered=True)
        return state._replace(step=state.step + 1), {"loss": jnp.zeros(())}

    rows = jnp.arange(20)
    run = lambda shuffle: training.fit(  # noqa: E731
        step, states(1), numbers(1), rows, mesh=one_device(1, 5), batch_size=5, epochs=2, shuffle=shuffle
    )
    jax.block_until_ready(run(True))
    jax.effects_barrier()
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    assert sorted(first) == sorted(second) == list(range(20))
    assert list(first) != list(second)
    seen.clear()
    jax.block_until_ready(run(False))
    jax.effects_barrier()
    assert list(np.concatenate(seen)) == [*range(20), *range(20)]


def test_learns(digits):
    model = networks.digits_cnn()
    start = stacking.stack([training.init_classifier(model, (8, 8, 1), jax.random.key(0))])
    step = training.classifier_step(model, attacks.no_attack)
    mesh = stacking.device_mesh(1, 50)
    progress = []
    trained = training.fit(
        step, start, numbers(1), digits.train, mesh=mesh, batch_size=50, epochs=4, progress=progress.append
    )
    predict = training.evaluate(model, attacks.no_attack, mesh)
    accuracy = np.mean(np.asarray(predict(trained.variables, digits.test, jax.random.key(0))) == digits.test.labels)
    assert accuracy > 0.95
    assert progress[-1].step == progress[-1].steps == 4 * (len(digits.train.labels) // 50)


def test_evaluation_attacks_each_network_by_itself(digits):
    split = data_sets.Split(*(leaf[:21] for leaf in digits.test))
    attack = attacks.pgd(attacks.L2, attacks.cross_entropy, 3)
    params = states(3).variables
    ours = training.evaluate(MODEL, attack, stacking.device_mesh(3, 100), chunk=4)(
        params, split, jax.random.key(0), 1.0, 0.5
    )
    for index in range(3):
        logits_fn = networks.logits_fn(MODEL, stacking.replica(params, index))
        images = data_sets.scale(jnp.asarray(split.images))
        attacked = jax.vmap(lambda x, y, f=logits_fn: attack(None, f, x, y, 1.0, 0.5))(images, split.labels)
        np.testing.assert_array_equal(ours[index], jax.vmap(logits_fn)(attacked).argmax(-1))


def test_divergence_names_the_network(data):
    bad = training.StepSizes(jnp.zeros(2), jnp.zeros(2), jnp.array([1e-3, 1e38]))
    with pytest.raises(training.DivergedError, match=r"strong: loss became .* in epoch \d.*smaller learning rate"):
        training.fit(
            STANDARD, states(2), bad, data, mesh=one_device(2), batch_size=10, epochs=3, names=["weak", "strong"]
        )


@pytest.mark.parametrize(("batch", "epochs"), [(0, 1), (65, 1), (10, 0)])
def test_refuses_what_cannot_be(data, batch, epochs):
    with pytest.raises(ValueError, match="expected"):
        training.fit(STANDARD, states(1), numbers(1), data, mesh=one_device(), batch_size=batch, epochs=epochs)


def test_numbers_never_recompile(data):
    compiled = []
    for count in (1, 2, 3):
        scaled = jax.tree.map(lambda leaf, count=count: leaf * count, numbers(1))
        training.fit(STEP, states(1, count), scaled, data, mesh=one_device(), batch_size=8, epochs=1)
        compiled.append(training.loop.segment(one_device(), training.loop._pixels(data))._cache_size())
    assert compiled[0] == compiled[-1]


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize("batch", [10, 7])
def test_sharded_data_give_the_numbers_of_copies(data, batch):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]).reshape(1, 2), (stacking.REPLICA, stacking.DATA))
    odd = data_sets.Split(*(leaf[:63] for leaf in data))
    fit = lambda shard: training.fit(  # noqa: E731
        STEP, states(1), numbers(1), odd, mesh=mesh, batch_size=batch, epochs=2, shard_data=shard
    )
    # Two programs: to rounding.
    close(fit(True).variables, fit(False).variables, atol=1e-7)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_the_step_runs_under_pmap(data):
    """The pure step, one half of a batch on each of two devices, as `fit` runs it on a mesh."""
    images, labels = (np.asarray(leaf[:10]).reshape(2, 5, *leaf.shape[1:]) for leaf in data)
    keys = jax.random.split(jax.random.key(3), (2, 5))
    halves = training.Batch(data_sets.Split(images, labels), np.ones((2, 5), np.float32), keys)
    whole = jax.tree.map(lambda leaf: leaf.reshape(1, 10, *leaf.shape[2:]), halves)
    state, number = stacking.replica(states(1), 0), training.StepSizes(0.5, 0.5, 1e-2)
    mapped = jax.pmap(STEP, axis_name=stacking.DATA, in_axes=(None, None, 0), devices=jax.devices()[:2])
    batched = jax.vmap(STEP, axis_name=stacking.DATA, in_axes=(None, None, 0))
    two, metrics = mapped(state, number, halves)
    one, expected = batched(state, number, whole)
    close(stacking.replica(two.variables, 0), stacking.replica(one.variables, 0))
    np.testing.assert_allclose(metrics["loss"], np.repeat(expected["loss"], 2), rtol=1e-5)
