"""AutoAttack and its parts: closed forms, budgets, masked gradients, and the reference implementation's verdicts."""

import doctest
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.optimize import linprog, minimize
from sklearn.neural_network import MLPClassifier

from robgrad import attacks, stacking
from robgrad import data as data_sets
from robgrad.attacks import pool
from robgrad.attacks.attacker import Asked, Attacker, slots, together
from robgrad.attacks.ensemble import ensemble
from robgrad.attacks.fab import to_hyperplane
from robgrad.attacks.norms import l1_project_within
from robgrad.attacks.search import Search

KEY = jax.random.key(0)
SHAPE = (6, 6, 2)
PIXELS = 72
WEIGHTS = np.random.default_rng(0).normal(size=(5, PIXELS)).astype(np.float32)


def linear(image):
    return jnp.asarray(WEIGHTS) @ image.ravel()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-0.9, 0.9, (6, *SHAPE)).astype(np.float32)


def ended(search, image, label, epsilon, target=0, logits_fn=linear):
    goal = attacks.Goal(logits_fn, jnp.asarray(image), label, jnp.float32(epsilon), target)
    state = lax.fori_loop(0, search.steps, lambda _, state: search.step(goal, state), search.start(KEY, goal))
    return search.end(state)


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_a_hyperplane_is_reached_by_the_least_step(norm):
    """Against scipy's solvers, in a box; and where the box does not reach so far, by all that there is."""
    generator = np.random.default_rng(3)
    for gap in (-0.8, 0.3, 2.0):
        point, normal = generator.uniform(-1, 1, 12), generator.normal(size=12)
        ours = to_hyperplane(
            attacks.norm_named(norm), jnp.float32(point), jnp.float32(normal), jnp.float32(gap), (-1.0, 1.0)
        )
        np.testing.assert_allclose(normal @ ours, -gap, atol=1e-4)
        assert np.all(np.abs(point + ours) <= 1 + 1e-5)
        if norm == "linf":
            # The least t with |z_i| <= t, z within the box and on the plane.
            bounds = [*zip(-1 - point, 1 - point, strict=True), (0, None)]
            above = np.hstack([np.vstack([np.eye(12), -np.eye(12)]), -np.ones((24, 1))])
            best = linprog([0] * 12 + [1], above, np.zeros(24), [[*normal, 0]], [-gap], bounds).fun
            assert np.abs(ours).max() == pytest.approx(best, abs=1e-4)
        elif norm == "l1":
            # z = up - down, both at least 0 and within the box.
            bounds = [(0, most) for most in (*(1 - point), *(point + 1))]
            best = linprog([1] * 24, A_eq=[[*normal, *-normal]], b_eq=[-gap], bounds=bounds).fun
            assert np.abs(ours).sum() == pytest.approx(best, abs=1e-4)
        else:
            plane = {"type": "eq", "fun": lambda z, n=normal, g=gap: n @ z + g}
            bounds = list(zip(-1 - point, 1 - point, strict=True))
            best = minimize(lambda z: z @ z, np.zeros(12), jac=lambda z: 2 * z, bounds=bounds, constraints=plane).fun
            assert float(ours @ ours) == pytest.approx(best, rel=1e-2, abs=1e-4)
    far = to_hyperplane(attacks.norm_named(norm), jnp.zeros(3), jnp.array([1.0, -2.0, 0.0]), 100.0, (-1.0, 1.0))
    np.testing.assert_allclose(far, [-1.0, 1.0, 0.0], atol=1e-5)


@pytest.mark.parametrize("norm", attacks.NORMS)
@pytest.mark.parametrize("targeted", [False, True])
def test_fab_finds_the_least_distance_of_a_linear_network(norm, targeted, images):
    """|difference of logits| over the dual norm of the weights' difference, the nearest class or the one aimed at."""
    search = attacks.fab(norm, 30, targeted=targeted, pixel_range=(-9.0, 9.0))
    for image in images:
        logits = WEIGHTS @ image.ravel()
        label = int(logits.argmax())
        gaps = logits - logits[label]
        dual = np.linalg.norm(WEIGHTS - WEIGHTS[label], {"l1": np.inf, "l2": 2, "linf": 1}[norm], axis=1)
        away = np.where(np.arange(5) == label, np.inf, -gaps / np.where(dual > 0, dual, 1))
        target = int(np.argsort(away)[1]) if targeted else int(away.argmin())
        attacked, fallen = ended(search, image, label, 100.0, target)
        assert fallen
        assert linear(attacked).argmax() != label
        found = attacks.NORMS[norm].length(attacked - image)
        # Another class may lie nearer than the one aimed at on the way there.
        assert away.min() * (1 - 1e-3) <= found <= away[target] * 1.02


@pytest.mark.parametrize("norm", attacks.NORMS)
@pytest.mark.parametrize("loss", ["xent", "cw"])
def test_apgd_reaches_the_linear_optimum(norm, loss, images):
    """Of two classes that matter the margin is linear: its optimum is one step of steepest ascent."""
    weights = jnp.stack([jnp.asarray(WEIGHTS[0]), jnp.asarray(WEIGHTS[1]), jnp.zeros(PIXELS)])
    logits_fn = lambda x: (weights @ x.ravel()).at[2].set(-50.0)  # noqa: E731
    search = attacks.apgd(norm, attacks.LOSSES[loss], 100, pixel_range=(-9.0, 9.0))
    attacked, _ = ended(search, images[0], 0, 0.5, logits_fn=logits_fn)
    direction = attacks.NORMS[norm].ascent(weights[1] - weights[0])
    if norm == "l1":
        # Two thirds of the pixels are kept at a time, rounded up: of the last two none is left out.
        difference = weights[1] - weights[0]
        largest = jnp.abs(difference) >= jnp.sort(jnp.abs(difference))[-2]
        direction = jnp.sign(difference) * largest / 2
    optimum = float((weights[1] - weights[0]) @ (images[0].ravel() + 0.5 * direction))
    assert float((weights[1] - weights[0]) @ attacked.ravel()) == pytest.approx(optimum, rel=2e-3, abs=2e-2)


def test_the_l1_ball_and_the_box_at_once():
    """The nearest point of both, against SciPy's solver."""
    generator = np.random.default_rng(4)
    for epsilon in (0.5, 2.0, 30.0):
        wanted, room = generator.normal(size=10) * 2, generator.uniform(0, 0.6, 10)
        found = np.asarray(l1_project_within(jnp.float32(wanted), jnp.float32(room), jnp.float32(epsilon)))
        bounds = [(0, most) for most in room]
        within = {"type": "ineq", "fun": lambda z, e=epsilon: e - z.sum()}
        best = minimize(lambda z, w=wanted: np.sum((z - np.abs(w)) ** 2), room / 9, bounds=bounds, constraints=within)
        np.testing.assert_allclose(found, np.sign(wanted) * best.x, atol=2e-3)
        assert np.abs(found.astype(np.float64)).sum() <= epsilon


def in_unit_range(split, count=None):
    return np.asarray((data_sets.scale(jnp.asarray(split.images[:count])) + 1) / 2), np.asarray(split.labels[:count])


def test_autoattack_in_l1_is_the_reference_implementations(digits):
    """Image by image, on a small network of digits, at a radius that about half of them withstand."""
    torch, reference = pytest.importorskip("torch"), pytest.importorskip("pyautoattack")
    (images, classes), (some, labels) = in_unit_range(digits.train), in_unit_range(digits.test, 40)
    network = MLPClassifier((32,), random_state=0, max_iter=60).fit(images.reshape(len(images), -1), classes)
    layers = [*zip(network.coefs_, network.intercepts_, strict=True)]
    tensors = [tuple(torch.tensor(part, dtype=torch.float32) for part in layer) for layer in layers]

    def run(pixels, layers, maximum):
        (first, shift), (second, other) = layers
        return maximum(pixels @ first + shift) @ second + other

    ours = attacks.robust_accuracy(
        lambda image: run(image.ravel(), layers, jax.nn.relu),
        *(some, labels),
        **{"norm": "l1", "epsilon": 2.0, "pixel_range": (0.0, 1.0)},
    )
    model = lambda batch: run(batch.flatten(1), tensors, torch.relu)  # noqa: E731
    theirs = reference.AutoAttack(model, norm="L1", eps=2.0, device="cpu", version="standard", seed=0)
    batch, wanted = torch.tensor(some).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels).long()
    attacked = theirs.run_standard_evaluation(batch, wanted, batch_size=40)[0]
    robust = (model(attacked).argmax(1) == wanted).numpy()
    assert 0.1 < robust.mean() < 0.9
    assert np.sum(ours.robust == robust) >= 39
    assert np.nanmax(ours.distance) <= 2.0


def parts():
    for norm in attacks.NORMS:
        for part in attacks.ensemble("plus", norm, 5)[0]:
            if part.rank == part.restart == 0:
                yield pytest.param(
                    norm, part.search._replace(steps=min(part.search.steps, 60)), id=f"{norm}-{part.name}"
                )


@pytest.mark.parametrize(("norm", "search"), list(parts()))
def test_every_part_stays_in_ball_and_range_and_keeps_its_word(norm, search, images):
    """What is called fallen is misclassified within the ball; at radius 0 nothing is."""
    weights = jnp.asarray(np.random.default_rng(5).normal(size=(PIXELS, 16)), jnp.float32)
    logits_fn = lambda x: jnp.tanh(x.ravel() @ weights / 3) @ weights[:16, :5]  # noqa: E731
    run = jax.jit(jax.vmap(lambda x, y, t, e: ended(search, x, y, e, t, logits_fn), in_axes=(0, 0, 0, None)))
    logits = jax.vmap(logits_fn)(images)
    labels, fallen_at = logits.argmax(1), {}
    for epsilon in (0.0, 0.05, 1.0):
        attacked, fallen = run(images, labels, jnp.argsort(-logits)[:, 1], epsilon)
        lengths = jax.vmap(attacks.NORMS[norm].length)(attacked - images)
        assert np.all(lengths[fallen] <= epsilon * (1 + 1e-5) + 1e-6)
        assert np.all(jax.vmap(logits_fn)(attacked).argmax(1)[fallen] != labels[fallen])
        assert np.all(np.abs(attacked) <= 1 + 1e-6)
        fallen_at[epsilon] = int(fallen.sum())
    assert fallen_at[0.0] == 0
    assert fallen_at[1.0] >= fallen_at[0.05]
    assert norm != "linf" or fallen_at[1.0] == 6


def test_losses_are_their_formulas():
    logits = np.random.default_rng(0).normal(size=7)
    ordered = np.sort(logits)[::-1]
    y, t = 3, 5
    others = np.delete(logits, y).max()
    got = attacks.dlr(jnp.asarray(logits), y)
    assert got == pytest.approx((others - logits[y]) / (ordered[0] - ordered[2]), rel=1e-4)
    got = attacks.targeted_dlr(jnp.asarray(logits), (y, t))
    assert got == pytest.approx((logits[t] - logits[y]) / (ordered[0] - (ordered[2] + ordered[3]) / 2), rel=1e-4)


@pytest.mark.parametrize("size", [1, 3, 8, 40])
def test_turns_that_share_a_batch_find_what_one_after_another_finds(size):
    """A search that falls after as many steps as the pixel of its class says, if it has so many; from a turn on."""
    turns, count, steps = 4, 9, 20
    images = np.random.default_rng(0).integers(1, 45, (count, 1, 1, turns)).astype(np.float32)
    search = Search(
        lambda key, goal: (jnp.int32(0), goal.image, goal.target),
        lambda goal, state: (state[0] + 1, *state[1:]),
        steps,
        lambda state: (state[1] + 100 * state[2], state[0] >= state[1].ravel()[state[2]]),
        attacks.L2,
        (0.0, 1.0),
    )
    tools = pool.tools_of(lambda variables, image: image.ravel(), search, 5, stacking.device_mesh(1, 1))
    aims = np.tile(np.arange(turns)[:, None], count).astype(np.int32)
    keys, since, told = jax.random.split(KEY, turns * count), np.arange(count) % 3, []
    examples = pool.Examples(images, np.zeros(count, np.int32), aims, np.ones(count, np.float32), keys)
    found, fell = pool.attack_all(tools, size, (), examples, since, told.append)
    falls = (images[:, 0, 0] <= steps) & (np.arange(turns) >= since[:, None])
    first = np.where(falls.any(1), falls.argmax(1), turns)
    assert 0 < (first == turns).sum() < count
    np.testing.assert_array_equal(fell, first)
    np.testing.assert_array_equal(found[:, 0, 0, 0], images[:, 0, 0, 0] + 100 * np.minimum(first, turns - 1))
    assert told[0] == count
    assert len(told) <= turns


def test_what_falls_but_is_not_right_goes_on_with_the_next_class(images):
    """As rounding may have it: an end that is not within the ball in double precision does not count."""
    outside = Search(
        lambda key, goal: (goal.image, goal.target),
        lambda goal, state: state,
        1,
        lambda state: (state[0] + jnp.where(state[1] % 2, 0.25, 0.75), jnp.array(True)),
        attacks.LINF,
        (-1.0, 1.0),
    )
    attacker = Attacker(lambda variables, image: linear(image), attacks.LINF, "standard", (-1.0, 1.0), 4, False)
    attacker.ended = lambda image, point, radius: point
    attacker.logits_of = lambda variables, images: np.zeros((len(images), 5), np.float32)
    some = Asked(images - 0.05, np.full(len(images), 3), np.full(len(images), 0.5), 0)
    aims = np.array([[0] * len(images), [2] * len(images), [1] * len(images)], np.int32)
    found, fallen = attacker.attack((), some, aims, jax.random.split(KEY, aims.size), outside, lambda still: None)
    assert fallen.all()
    np.testing.assert_allclose(found, some.images + 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "devices", "fine", "wanted"),
    [
        (3, 1, True, 8),
        (34, 1, True, 40),
        (34, 1, False, 64),
        (306, 2, True, 80),
        (306, 2, False, 100),
        (100, 1, True, 100),
        (9, 4, True, 12),
    ],
)
def test_slots_fit_the_attacks(count, devices, fine, wanted):
    assert slots(count, 100, devices, fine) == wanted


def test_few_images_have_their_targets_together():
    """34 of 100 slots at 9 classes: all at once; a thousand images: one class after another, and never two searches."""
    parts, _ = ensemble("standard", "linf", 10)
    assert [part.rank for part in together(parts[1:], 34, 400)] == [*range(9)]
    assert [part.rank for part in together(parts[1:], 1000, 400)] == [0]
    assert [part.name for part in together(parts, 10, 400)] == ["apgd-ce"]


def test_an_images_fate_does_not_depend_on_its_batch(images):
    labels = np.array([int(linear(image).argmax()) for image in images])
    options = {"norm": "l2", "epsilon": 0.3}
    whole = attacks.robust_accuracy(linear, images, labels, **options)
    packed = attacks.robust_accuracy(linear, images, labels, batch=2, **options)
    np.testing.assert_array_equal(whole.robust, packed.robust)
    np.testing.assert_array_equal(whole.broken_by, packed.broken_by)
    np.testing.assert_allclose(whole.adversarial, packed.adversarial, atol=1e-4)


def test_radii_share_what_smaller_ones_have_broken(images):
    labels = np.array([int(linear(image).argmax()) for image in images])
    labels[0] = (labels[0] + 1) % 5
    curve = attacks.robust_accuracy(linear, images, labels, epsilon=[0.2, 0.0, 0.01], version="short")
    assert curve[1].standing["clean"] == 5
    assert curve[1].robust.sum() == 5
    assert np.all(curve[0].robust <= curve[2].robust)
    assert np.all(curve[2].robust <= curve[1].robust)
    assert curve[0].broken_by[0] == "wrong from the start"
    assert np.isnan(curve[0].distance[0])
    rows = curve[0].to_rows()
    assert sum(row["broken"] for row in rows) == 6 - curve[0].robust.sum()


def test_a_run_that_was_cut_goes_on(images):
    labels, kept = np.array([int(linear(image).argmax()) for image in images]), []
    options = {"epsilon": 0.2, "version": "short"}
    whole = attacks.auto_attack(linear, images, labels, save=kept.append, **options)
    said = []
    again = attacks.auto_attack(linear, images, labels, restored=kept[len(kept) // 2], progress=said.append, **options)
    np.testing.assert_array_equal(whole.robust, again.robust)
    assert whole.standing == again.standing
    assert whole.notes == again.notes == ()
    assert not any("apgd-ce" in line for line in said)


class Cut(Exception):
    pass


def test_an_evaluation_along_radii_goes_on_from_its_file(images, tmp_path):
    """Cut after any of its attacks, it ends as the one that was not cut, and does no attack twice."""
    labels, radii = np.array([int(linear(image).argmax()) for image in images]), (0.001, 0.02, 0.2)
    options = {"epsilon": radii, "version": "short"}
    whole = attacks.robust_accuracy(linear, images, labels, **options)
    said, file = [], tmp_path / "some" / "state.npz"

    def cut(line):
        said.append(line)
        if len(said) in (2, 6):
            raise Cut

    for _ in range(2):
        with pytest.raises(Cut):
            attacks.robust_accuracy(linear, images, labels, state=file, progress=cut, **options)
    found = attacks.robust_accuracy(linear, images, labels, state=file, progress=cut, **options)
    for one, other in zip(whole, found, strict=True):
        np.testing.assert_array_equal(one.robust, other.robust)
        np.testing.assert_array_equal(one.broken_by, other.broken_by)
        np.testing.assert_array_equal(one.adversarial, other.adversarial)
    assert len(said) <= 4 * len(radii) + 2
    seen = len(said)
    attacks.robust_accuracy(linear, images, labels, state=file, progress=cut, **options)
    assert len(said) == seen
    with pytest.raises(ValueError, match="expected a restored evaluation with seed 1"):
        attacks.robust_accuracy(linear, images, labels, state=file, seed=1, **options)
    with pytest.raises(ValueError, match="got both"):
        attacks.robust_accuracy(linear, images, labels, state=file, save=print, epsilon=0.1)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="state of an evaluation"):
        attacks.robust_accuracy(linear, images, labels, state=file, **options)
    np.savez(file, something=np.zeros(2))
    with pytest.raises(ValueError, match="state of an evaluation"):
        attacks.robust_accuracy(linear, images, labels, state=file, **options)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_evaluated_and_said(classes, images):
    logits_fn = lambda x: jnp.asarray(WEIGHTS[:classes]) @ x.ravel()  # noqa: E731
    labels = np.array([int(logits_fn(image).argmax()) for image in images])
    found = attacks.robust_accuracy(logits_fn, images, labels, epsilon=0.5, version="short")
    assert not found.robust.any()
    assert any("undefined for" in note for note in found.notes)


def test_constant_and_hopeless_networks(images):
    constant = lambda x: jnp.array([1.0, 0.0, 0.0, 0.0])  # noqa: E731
    found = attacks.robust_accuracy(constant, images, np.array([0, 0, 1, 2, 0, 0]), epsilon=1.0, version="short")
    np.testing.assert_array_equal(found.robust, [True, True, False, False, True, True])
    assert any("gradient is zero on 6 of 6" in note for note in found.notes)
    assert any("has not risen on 4 of 4 images" in note for note in found.notes)
    wrong = attacks.robust_accuracy(constant, images, np.full(6, 3), epsilon=1.0, version="short")
    assert wrong.accuracy == 0
    assert set(wrong.broken_by) == {"wrong from the start"}
    one = attacks.robust_accuracy(constant, images[:1], np.zeros(1, int), epsilon=0.0, version="short")
    assert one.accuracy == 1


def test_masked_gradients_are_noticed_and_got_around(images):
    """Rounded inputs have no gradient; Square, which needs none, still finds them weak."""
    rounded = lambda x: linear(jnp.round(x * 20) / 20)  # noqa: E731
    labels = np.array([int(rounded(image).argmax()) for image in images])
    found = attacks.robust_accuracy(rounded, images, labels, norm="linf", epsilon=0.3)
    assert any("gradients are masked" in note for note in found.notes)
    assert any("Square, which sees no gradient, broke" in note for note in found.notes)
    assert found.accuracy < 0.5


def test_probabilities_are_noticed(images):
    labels = np.array([int(linear(image).argmax()) for image in images])
    found = attacks.robust_accuracy(lambda x: jax.nn.softmax(linear(x)), images, labels, epsilon=0.0, version="short")
    assert any("look like probabilities" in note for note in found.notes)


def test_new_images_and_radii_compile_nothing(images):
    labels = np.array([int(linear(image).argmax()) for image in images])
    traces = []

    def counted(image):
        traces.append(None)
        return linear(image)

    attacks.robust_accuracy(counted, images, labels, epsilon=0.001, version="short")
    before = len(traces)
    attacks.robust_accuracy(counted, images[::-1].copy(), labels[::-1].copy(), epsilon=0.002, version="short")
    # The check of its output's shape asks once.
    assert len(traces) - before <= 1


IMAGES = np.zeros((3, 4, 4, 1), np.float32)
LABELS = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[..., 0], LABELS, r"expected images of shape \[N, H, W, C\], got \[3, 4, 4\]"),
        (IMAGES[0], LABELS, r"give one image as images\[None\]"),
        (np.zeros((3, 3, 32, 32), np.float32), LABELS, r"looks like \[N, C, H, W\]"),
        (IMAGES[:0], LABELS[:0], "expected at least one image"),
        (IMAGES.astype(np.int64), LABELS, "expected uint8 or floating-point images, got int64"),
        (IMAGES.astype(bool), LABELS, "got bool"),
        (IMAGES + np.nan, LABELS, "expected finite pixels, got NaN or infinity in 3 of 3"),
        (IMAGES + 200, LABELS, r"expected pixels in \[-1, 1\], got 200 to 200"),
        (IMAGES, LABELS[:2], "expected one label for each of 3 images"),
        (IMAGES, np.eye(3, dtype=int), "give classes, not one-hot vectors"),
        (IMAGES, LABELS * 1.0, "expected integer labels, got float64"),
        (IMAGES, LABELS - 1, r"expected labels in 0..1, as many as the network has logits, got -1..0"),
        (IMAGES, LABELS + 49, r"got 49..50"),
    ],
)
def test_bad_images_and_labels_end_in_one_line(images, labels, message):
    network = lambda x: jnp.stack([x.sum(), -x.sum()])  # noqa: E731
    with pytest.raises(data_sets.DataError, match=message):
        attacks.robust_accuracy(network, images, labels, epsilon=0.1)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (lambda x: jnp.stack([x.sum(), -x.sum()]), {"epsilon": -1.0}, "expected epsilon >= 0"),
        (lambda x: jnp.stack([x.sum(), -x.sum()]), {"epsilon": np.nan}, "expected epsilon >= 0"),
        (lambda x: jnp.stack([x.sum(), -x.sum()]), {"epsilon": 1.0, "norm": "l7"}, "expected a norm of l1, l2, linf"),
        (lambda x: jnp.stack([x.sum(), -x.sum()]), {"epsilon": 1.0, "version": "x"}, "expected a version of standard"),
        (
            lambda x: jnp.zeros((4, 10)),
            {"epsilon": 1.0},
            r"vector of two logits or more, got \[4, 10\].*if it maps batch",
        ),
        (lambda x: x.sum(), {"epsilon": 1.0}, r"got \[\]"),
        (lambda x: x.reshape(-1, 999), {"epsilon": 1.0}, "which this one does not take"),
    ],
)
def test_bad_networks_and_options_end_in_one_line(network, options, message):
    with pytest.raises(ValueError, match=message):
        attacks.robust_accuracy(network, IMAGES, LABELS, **options)


def test_what_is_meant_is_taken():
    """Bytes, half precision, a column of labels, another pixel range."""
    network = lambda x: jnp.stack([x.sum(), 1.0 - x.sum()])  # noqa: E731
    for images in (IMAGES.astype(np.uint8), IMAGES.astype(np.float16), IMAGES.astype(np.float64)):
        labels, options = LABELS[:, None] * 0 + 1, {"pixel_range": (0.0, 1.0), "version": "short"}
        found = attacks.robust_accuracy(network, images, labels, epsilon=0.0, **options)
        assert found.robust.all()


def test_the_docstrings_example_holds():
    assert doctest.testmod(sys.modules["robgrad.attacks.auto_attack"]).failed == 0


def witness():
    """The public MNIST network of the witness, as a function of one image in [0, 1]."""
    weights = dict(np.load(Path(os.environ["ROBGRAD_WITNESS"]) / "mnist-fgsm.npz"))

    def logits_fn(image):
        features = image[None]
        for name in ("0", "2"):
            kernel = jnp.asarray(weights[f"{name}.weight"]).transpose(2, 3, 1, 0)
            features = lax.conv_general_dilated(
                features, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            features = jax.nn.relu(features + weights[f"{name}.bias"])
        flat = features.transpose(0, 3, 1, 2).reshape(1, -1)
        hidden = jax.nn.relu(flat @ jnp.asarray(weights["5.weight"]).T + weights["5.bias"])
        return (hidden @ jnp.asarray(weights["7.weight"]).T + weights["7.bias"])[0]

    return logits_fn


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_verdicts_are_the_reference_implementations(count, optimised):
    """On MNIST's first test images, at l-inf 0.3, by AutoAttack's own code (recorded with the witness)."""
    if "ROBGRAD_WITNESS" not in os.environ or "TFDS_DATA_DIR" not in os.environ:
        pytest.skip("set ROBGRAD_WITNESS to the folder of the public network, and TFDS_DATA_DIR to MNIST's")
    mnist = data_sets.load("mnist").test
    recorded = np.load(Path(os.environ["ROBGRAD_WITNESS"]) / "mnist-fgsm-autoattack.npz")
    found = attacks.robust_accuracy(
        witness(), mnist.images[:count], mnist.labels[:count], epsilon=0.3, pixel_range=(0.0, 1.0)
    )
    assert found.standing["clean"] == recorded["clean"][:count].sum()
    assert np.sum(found.robust == recorded["robust"][:count]) >= 0.99 * count
    assert found.robust.sum() <= recorded["robust"][:count].sum() + 0.005 * count
    assert np.nanmax(found.distance) <= 0.3 * (1 + 1e-6)


def test_a_choice_of_attacks_and_one_of_your_own(images):
    """A linear network: a step along the weights' sign is the worst of the ball, so nothing else breaks more."""
    logits_fn = lambda image: jnp.asarray(WEIGHTS) @ jnp.ravel(image)  # noqa: E731
    labels, epsilon = np.argmax(jax.vmap(logits_fn)(images), axis=1), 0.02

    def one_step(key, logits_fn, image, label, epsilon, step_size):
        """The worst corner of the ball, three times as far as allowed."""
        others = jnp.asarray(WEIGHTS) - jnp.asarray(WEIGHTS)[label]
        corners = image + epsilon * jnp.sign(others).reshape(-1, *SHAPE)
        margins = jax.vmap(lambda corner: attacks.cw_margin(logits_fn(corner), label))(corners)
        return image + 3 * (corners[jnp.argmax(margins)] - image)

    options = {"epsilon": epsilon, "norm": "linf"}
    own = attacks.robust_accuracy(logits_fn, images, labels, version=(one_step,), **options)
    assert {*own.broken_by} <= {"", "own"}
    assert 0 < own.robust.mean() < 1
    assert np.nanmax(own.distance) <= epsilon
    both = attacks.robust_accuracy(
        logits_fn, images, labels, version=["apgd-ce", "apgd-t", one_step, "square"], **options
    )
    assert [*both.standing] == ["clean", "apgd-ce", "apgd-t", "own", "square"]
    np.testing.assert_array_equal(both.robust, own.robust)
    for version, line in (
        (("apgd-xe",), "expected attacks of apgd-ce,"),
        ((), "expected one attack or more"),
        (("square", "square"), "each once"),
        ((3,), "or functions, got 3"),
        ("short-ish", "expected a version of standard,"),
    ):
        with pytest.raises(ValueError, match=line):
            attacks.robust_accuracy(logits_fn, images, labels, version=version, **options)


def test_accuracy_by_class_is_that_of_its_images():
    broken_by = np.array(["", "apgd-ce", "wrong from the start", "", "", ""])
    nothing = np.zeros((6, 1, 1, 1))
    found = attacks.Evaluation(broken_by == "", broken_by, nothing, np.zeros(6), {"clean": 5}, ())
    rows = found.by_class([0, 0, 0, 2, 2, 2])
    assert [row["class"] for row in rows] == [0, 2]
    assert [row["clean_accuracy"] for row in rows] == [pytest.approx(2 / 3), 1.0]
    assert [row["robust_accuracy"] for row in rows] == [pytest.approx(1 / 3), 1.0]
    # Wilson's interval of 3 of 3, in closed form.
    assert rows[1]["low"] == pytest.approx(3 / (3 + 1.959964**2), abs=1e-4)
    with pytest.raises(ValueError, match="expected a label for each of 6 images, got 2"):
        found.by_class([0, 1])
