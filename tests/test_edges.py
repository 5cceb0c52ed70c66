"""Odd inputs that people in this field have: each gets its right value or one clear line, in float32 and in float64."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from robgrad import attacks, data, faithfulness, gradients, manifolds, networks, stacking, training
from robgrad.attacks import search
from robgrad.gradients import controls, outputs
from robgrad.manifolds import densities
from robgrad.manifolds.neighbours import principal_directions
from robgrad.training import regularisers

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
BLACK = -np.ones((4, 4, 1), np.float32)
GREY = np.zeros((4, 4, 1), np.float32)
SOME = GENERATOR.uniform(-0.9, 0.9, (8, 4, 4, 1)).astype(np.float32)
WEIGHTS = GENERATOR.normal(size=(16, 3)).astype(np.float32)


def linear(image):
    return image.ravel() @ WEIGHTS.astype(image.dtype)


def two_classes(image):
    """Its margin is the sum of pixels."""
    return jnp.stack([image.sum(), 0.0 * image.sum()])


def distant(image):
    """Its gradient is NaN at the black image, where the first logit is 0 and the second 3."""
    length = jnp.linalg.norm(jnp.ravel(image + 1))
    return jnp.stack([length, 3 - length])


def boxed(image):
    """Right for class 0 on every image of the box, NaN outside of it."""
    return jnp.where(jnp.all(jnp.abs(image) <= 0.9), jnp.stack([1 + 0 * image.sum(), 0.0, 0.0]), jnp.nan)


def nothing(image):
    return jnp.full(3, jnp.nan) + image.sum()


def accuracy(attack, logits_fn, images, labels, epsilon, step=0.05):
    """Share of images that are right after an attack, NaN being wrong."""

    def hit(image, label):
        return networks.predicted(logits_fn(attack(KEY, logits_fn, image, label, epsilon, step))) == label

    return float(jnp.mean(jax.vmap(hit)(jnp.asarray(images), jnp.asarray(labels))))


def robust(logits_fn, images, labels, epsilon, **options):
    return attacks.robust_accuracy(logits_fn, images, labels, epsilon=epsilon, version="short", **options).accuracy


def of_two(loss):
    """Of images whose margin is their sum, an l-inf attack of 0.1 breaks those with a sum below 1.6."""
    images = np.linspace(0.05, 0.15, 4, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((4, 4, 1), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return accuracy(attacks.pgd("linf", loss, 5), two_classes, images, np.zeros(4, int), 0.1)


def ramp_path():
    """Integrated Gradients of relu(10 x - 9) + relu(x), from black to white."""
    logits_fn = lambda x: jnp.stack([jax.nn.relu(10 * x - 9).sum() + jax.nn.relu(x).sum(), -1.0])  # noqa: E731
    image = jnp.ones((2, 2, 1))
    values = gradients.integrated_gradients(-1.0, pixels=outputs.signed)(KEY, logits_fn, image)
    return float(gradients.completeness_error(values, logits_fn, image, -1.0))


def aligned(scale):
    """GradAlign's cosine for gradients of a size."""
    one, two = np.array([[1.0, 2.0, 0.5]]), np.array([[0.5, 2.5, 1.0]])
    return 1 - float(
        regularisers._cosine(jnp.asarray(scale * one, jnp.float32), jnp.asarray(scale * two, jnp.float32))[0]
    )


def steep(samples=64):
    """VarGrad's variance of gradients 1000 + noise of 0.01, over that of the noise itself."""
    logits_fn = lambda x: jnp.stack([1000 * x.sum() + 0.005 * jnp.sum(x**2), -1e9])  # noqa: E731
    attribution = gradients.smoothgrad(samples, 1.0, "variance", outputs.logit_of_prediction, outputs.signed)
    noise = [jax.random.normal(jax.random.fold_in(KEY, index), (4, 4, 1)) for index in range(samples)]
    want = np.var(1000 + 0.01 * np.asarray(noise, np.float64), axis=0)[..., 0]
    got = np.asarray(attribution(KEY, logits_fn, jnp.asarray(GREY)))
    assert (got >= 0).all()
    return float(np.median(got / want))


def plane_error():
    """The largest sine between local PCA's directions and those of NumPy's SVD in double precision."""
    spread = GENERATOR.normal(size=(50, 64)) * np.linspace(1.1, 1.0, 64)
    spread -= spread.mean(0)
    ours = np.asarray(principal_directions(jnp.asarray(spread, jnp.float32), 10), np.float64)
    theirs = np.linalg.svd(spread, full_matrices=False)[2][:10].T
    return float(np.linalg.norm(ours - theirs @ (theirs.T @ ours), 2))


def targeted_share(build):
    """Share of images that an attack leads to its target, over the best of five plain attacks from the same starts."""
    shape, count = (4, 4, 1), 60
    hidden, out = GENERATOR.normal(size=(16, 24)) / 2, GENERATOR.normal(size=(24, 5))
    logits_fn = lambda x: jnp.sin(3 * x.ravel() @ hidden.astype(np.float32)) @ out.astype(np.float32)  # noqa: E731
    images = jnp.asarray(GENERATOR.uniform(-0.5, 0.5, (count, *shape)), jnp.float32)
    labels = jax.vmap(lambda x: logits_fn(x).argmax())(images)
    aims = (labels + 1 + jnp.arange(count) % 4) % 5

    def reached(attack, key):
        ends = jax.vmap(lambda x, y, t: attack(key, logits_fn, x, (y, t), 0.15, 0.03))(images, labels, aims)
        return jax.vmap(lambda x, t: logits_fn(x).argmax() == t)(ends, aims)

    starts = [attacks.pgd("linf", attacks.targeted_margin, 10)]
    starts += [attacks.pgd("linf", attacks.targeted_margin, 10, random_start=True)] * 4
    keys = [KEY, *(jax.random.fold_in(KEY, index) for index in range(1, 5))]
    plain = [reached(attack, key) for attack, key in zip(starts, keys, strict=True)]
    return float(reached(build, KEY).mean() / np.any(plain, axis=0).mean())


PGD = attacks.pgd("linf", attacks.cross_entropy, 10)
APGD = attacks.as_attack(attacks.apgd("linf", attacks.targeted_margin, 50, targeted=True))
RESTARTS = attacks.pgd_restarts("linf", attacks.targeted_margin, 10)
_ONE, _TWO = np.array([1.0, 2.0, 0.5]), np.array([0.5, 2.5, 1.0])
SPARSE = np.where(GENERATOR.uniform(size=(2, 400)) < 0.8, 0.0, GENERATOR.uniform(size=(2, 400)))


def slope_of(loss, classes):
    """The length of a loss's derivative in l1 at the logits (1, 0, ...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(jnp.abs(jax.grad(lambda z: loss(z, 0))(jnp.zeros(classes).at[0].set(1.0))).sum())


def aimed_dlr(logits, label):
    return attacks.targeted_dlr(logits, (label, 1))


def correlated(one, two):
    return float(faithfulness.rank_correlation(jnp.asarray(one), jnp.asarray(two)))


def ranked(dtype):
    return gradients.rank_map(KEY, jnp.asarray([[0, 255], [100, 3]], dtype)).ravel().tolist()


def orthonormal(size):
    basis, rank = manifolds.column_space(size * jax.random.normal(KEY, (16, 3)))
    assert int(rank) == 3
    return float(jnp.abs(basis.T @ basis - jnp.eye(3)).max()) // 1e-5


def nothing_gained():
    return float(gradients.completeness_error(jnp.ones((4, 4)), lambda x: jnp.ones(3), jnp.asarray(GREY)))


def aims(logits, label):
    return search.targets(jnp.array(logits), label).tolist()


def beyond(bound):
    attack = attacks.pgd("linf", attacks.cross_entropy, 3, pixel_range=(-bound, bound))
    end = attack(KEY, linear, jnp.asarray(GREY), 1, 1.0, 1.0)
    return float(np.abs(np.asarray(end, np.float64)).max() - bound)


def infidelity(name, size=1.0):
    signed = gradients.SIGNED[name]
    colour = lambda x: jnp.stack([jnp.sum(x * COLOURED), 0.0 * x.sum()])  # noqa: E731
    image = jnp.asarray(COLOURED) / 10
    return float(faithfulness.infidelity(KEY, colour, image, size * signed(KEY, colour, image)))


COLOURED = GENERATOR.normal(size=(4, 4, 3)).astype(np.float32)


def sensitivity(rank):
    basis = jnp.eye(16)[:, :rank] if rank else jnp.zeros((16, 2))
    tangent = manifolds.TangentSpace(basis, jnp.int32(rank))
    return [float(one) for one in gradients.sensitivity(KEY, linear, jnp.asarray(GREY), tangent, 0.5)]


def empty_fraction():
    flat = manifolds.autoencoder(lambda x: x.ravel()[:2], lambda z: jnp.zeros((4, 4, 1)) + 0 * z.sum())
    found = gradients.align(linear, flat, jnp.asarray(GREY), jnp.asarray(GREY))
    assert float(found.chance) == 0
    return float(found.tangent_fraction)


def agreed(mask):
    return faithfulness.agreement(KEY, jnp.ones((4, 4)), mask)


def path_sum(base):
    weights = jnp.arange(32.0).reshape(4, 4, 2) / 16 * 32 / 31
    logits_fn = lambda x: jnp.stack([jnp.sum(x * weights), -1e9])  # noqa: E731
    attribution = gradients.integrated_gradients(base, pixels=outputs.signed)
    return float(attribution(KEY, logits_fn, jnp.zeros((4, 4, 2))).sum())


def sure(image):
    """Infinite in its first logit: of no class, however the gradient looks."""
    return jnp.stack([jnp.inf + image.sum(), image.sum(), 0.0])


def nan_share(values):
    return float(jnp.mean(jnp.isnan(jnp.asarray(values))))


def far_square():
    """Square in l2 with a radius whose square overflows: the ball is all of the box, so that the goal is reached."""
    attack = attacks.as_attack(attacks.square("l2", 50))
    end = attack(KEY, two_classes, jnp.asarray(GREY) + 0.1, 0, 1e30, 1.0)
    assert jnp.isfinite(end).all()
    return float(two_classes(end)[0] < 0)


def narrowed(traced):
    """By how much a radius given as a float64 array is exceeded by its float32 form, at most 0."""
    from robgrad.data.calls import checked_numbers

    with jax.enable_x64(True):
        radius = jnp.asarray(0.05, jnp.float64)
        narrow = lambda number: checked_numbers(np.dtype(np.float32), epsilon=number)[0]  # noqa: E731
        got = jax.jit(narrow)(radius) if traced else narrow(radius)
        return float(np.float64(got) <= 0.05) * float(got.dtype == np.float32)


PENALTY = 1 - _ONE @ _TWO / np.linalg.norm(_ONE) / np.linalg.norm(_TWO)


# What is computed, its right value, and where that is from.
EDGES = [
    (
        "a gradient that is NaN moves nothing, label 1",
        lambda: accuracy(PGD, distant, [BLACK], [1], 0.05),
        1.0,
        "by hand",
    ),
    (
        "a gradient that is NaN moves nothing, label 0",
        lambda: accuracy(PGD, distant, [BLACK], [0], 0.05),
        0.0,
        "by hand",
    ),
    ("the same by AutoAttack", lambda: robust(distant, [BLACK] * 2, [1, 0], 0.05), 0.5, "by hand"),
    ("NaN within reach is an error", lambda: robust(boxed, SOME, np.zeros(8, int), 0.6), 0.0, "by hand"),
    ("NaN out of reach is none", lambda: robust(boxed, SOME * 0.5, np.zeros(8, int), 0.1), 1.0, "by hand"),
    ("a network of NaN is never right", lambda: robust(nothing, SOME, np.zeros(8, int), 0.1), 0.0, "by hand"),
    ("an infinite logit is of no class", lambda: int(networks.predicted(jnp.array([jnp.inf, 0.0]))), -1, "by hand"),
    ("a class that is masked out is none", lambda: int(networks.predicted(jnp.array([-jnp.inf, 0.0]))), 1, "by hand"),
    (
        "attributions of an infinite logit",
        lambda: min(
            nan_share(one(KEY, sure, jnp.asarray(GREY)))
            for name, one in gradients.ATTRIBUTIONS.items()
            if name not in ("grad_cam", "noise_blurred", "edges", "occlusion", "lime")
        ),
        1.0,
        "nothing is predicted",
    ),
    (
        "deletion of an infinite logit",
        lambda: nan_share(faithfulness.deletion_and_insertion(KEY, sure, jnp.asarray(GREY), jnp.ones((4, 4)))),
        1.0,
        "nothing is predicted",
    ),
    ("alignment of an infinite logit", lambda: nan_share(gradients.image_alignment(sure, SOME[0])), 1.0, "the same"),
    ("Square with all of the box in reach", far_square, 1.0, "the sum's sign"),
    ("a radius of float64 is not rounded up", lambda: narrowed(False), 1.0, "0.05 in float64"),
    ("nor where it is traced", lambda: narrowed(True), 1.0, "0.05 in float64"),
    (
        "the share of images that are all alike",
        lambda: nan_share(gradients.covariance_chance(jnp.eye(16)[:, :2], jnp.zeros((5, 16)))),
        1.0,
        "0 / 0",
    ),
    ("dlr with two classes", lambda: of_two(attacks.dlr), 0.5, "sums above 1.6"),
    ("the margin with two classes", lambda: of_two(attacks.cw_margin), 0.5, "sums above 1.6"),
    ("the slope of targeted dlr of three logits", lambda: slope_of(aimed_dlr, 3), 2.0, "the margin's"),
    ("the slope of dlr of two logits", lambda: slope_of(attacks.dlr, 2), 2.0, "the margin's"),
    ("GradAlign of gradients of 1", lambda: aligned(1.0), PENALTY, "NumPy in float64"),
    ("GradAlign of gradients of 1e-9", lambda: aligned(1e-9), PENALTY, "NumPy in float64"),
    ("GradAlign of gradients of 1e-25", lambda: aligned(1e-25), PENALTY, "NumPy in float64"),
    ("GradAlign of no gradient", lambda: aligned(0.0), 0.0, "flat"),
    ("restarts on a target", lambda: targeted_share(RESTARTS), 1.0, "any of the same five"),
    ("APGD on a target finds it, too", lambda: targeted_share(APGD) > 0.9, True, "any of five by PGD"),
    ("rank correlation of nothing", lambda: correlated(np.nan * np.ones((2, 2)), np.ones((2, 2))), np.nan, "undefined"),
    ("rank correlation of a constant", lambda: correlated(np.ones(5), np.arange(5.0)), np.nan, "SciPy"),
    ("rank correlation of ties", lambda: correlated([0, 0, 0, 0, 1.0], [1, 2, 3, 4, 5.0]), math.sqrt(0.5), "SciPy"),
    ("rank correlation of sparse maps", lambda: correlated(*SPARSE), stats.spearmanr(*SPARSE).statistic, "SciPy"),
    ("VarGrad of a steep network", steep, 1.0, "NumPy in float64"),
    ("Integrated Gradients are complete from black", lambda: ramp_path() < 0.01, True, "completeness"),
    ("a peak at the first value", lambda: densities.peaks(np.r_[np.zeros(500), np.linspace(0, 1, 100)]), 1, "by hand"),
    (
        "peaks at both ends",
        lambda: densities.peaks(np.r_[np.zeros(50), np.linspace(0, 1, 9), np.ones(50)]),
        2,
        "by hand",
    ),
    ("local PCA of nearly equal variances", lambda: plane_error() < 1e-3, True, "NumPy's SVD in float64"),
    ("infidelity of a linear network's gradient", lambda: infidelity("gradient"), 0.0, "by hand"),
    ("a map of bytes ranks as one of floats", lambda: ranked(np.uint8), [3, 0, 1, 2], "by hand"),
    ("infidelity of a gradient of 1e-25", lambda: infidelity("gradient", 1e-25), 0.0, "by hand"),
    ("a basis of directions of 1e-25", lambda: orthonormal(1e-25), 0.0, "by hand"),
    ("a basis of directions of 1e25", lambda: orthonormal(1e25), 0.0, "by hand"),
    ("completeness of an output that gains nothing", lambda: nothing_gained(), np.nan, "undefined"),
    ("the class aimed at is never the label", lambda: aims([1.0, -np.inf], 0), [1], "by hand"),
    ("a class whose logit is NaN is aimed at, too", lambda: sorted(aims([1.0, np.nan, 0.0], 0)), [1, 2], "by hand"),
    ("agreement with no mask", lambda: float(agreed(np.zeros((4, 4))).mass), np.nan, "undefined"),
    ("a range that float32 does not hold", lambda: beyond(0.1) <= 0, True, "in float64"),
    ("bytes 255 are 1", lambda: float(data.scale(jnp.array([255], jnp.uint8))[0]), 1.0, "by hand"),
    ("noise along no tangent space", lambda: sensitivity(0)[0], 0.0, "nothing moves"),
    ("noise across a whole space", lambda: sensitivity(16)[1], 0.0, "nothing moves"),
    ("a share of an empty tangent space", lambda: empty_fraction(), 0.0, "by hand"),
    *(
        (f"a mask of {what}", lambda mask=mask: float(agreed(mask).mass), 0.25, "by hand")
        for what, mask in {
            "bool": np.eye(4, dtype=bool),
            "bytes": np.eye(4, dtype=np.uint8) * 255,
            "integers": np.eye(4, dtype=int),
            "floats": np.eye(4),
            "one channel": np.eye(4)[..., None],
        }.items()
    ),
    *(
        (f"a baseline of {what}", lambda base=base: path_sum(base), 32.0, "w (x - b), by hand")
        for what, base in {"a number": -1.0, "a colour": [-1.0, -1.0], "a picture": -np.ones((4, 4))}.items()
    ),
]


@pytest.mark.parametrize(("name", "compute", "right", "source"), EDGES, ids=[one[0] for one in EDGES])
def test_edges_have_their_right_value(name, compute, right, source):
    assert compute() == pytest.approx(right, rel=2e-3, abs=1e-6, nan_ok=True), f"{name}: expected {right} ({source})"


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Images and networks of one type and then the other; JAX has float64 on in both."""
    with jax.enable_x64(True):
        yield np.dtype(request.param)


MODEL = networks.CNN(((4, 6),), 3, 8, 4)


def model_of(dtype, classes=4):
    """A small network of the package's own, its parameters of a type."""
    network = MODEL.clone(classes=classes)
    variables = networks.init(network, KEY, (6, 6, 2))
    return networks.logits_fn(network, jax.tree.map(lambda leaf: leaf.astype(dtype), variables))


def images_of(dtype, count=3):
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (count, 6, 6, 2)), dtype)


NETWORKS = {
    "of NaN": lambda image: jnp.full(4, jnp.nan, image.dtype) * image.sum(),
    "constant": lambda image: jnp.array([0.0, 1.0, 0.0, 1.0], image.dtype) + 0 * image.sum(),
    "of two classes": lambda image: jnp.stack([image.sum(), -image.sum()]),
}
BUILDERS = {
    **attacks.ATTACKS,
    "fab": lambda norm, loss, steps: attacks.as_attack(attacks.fab(norm, steps)),
    "square": lambda norm, loss, steps: attacks.as_attack(attacks.square(norm, steps)),
    "off the manifold": lambda norm, loss, steps: manifolds.off_manifold(
        attacks.pgd(norm, loss, steps), manifolds.autoencoder(lambda x: x.ravel()[:5], lambda z: decoded(z))
    ),
}


def decoded(code):
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(5, 72)), code.dtype)
    return jnp.tanh(code @ rows).reshape(6, 6, 2)


@pytest.mark.parametrize("norm", attacks.NORMS)
@pytest.mark.parametrize("name", BUILDERS)
def test_every_attack_ends_inside_ball_and_range_whatever_the_network(name, norm, dtype):
    """In double precision, radii one an image, ranges one a channel; of NaN, constant, of two classes, one's own."""
    low, high = np.array([-1.0, -0.5]), np.array([1.0, 0.5])
    images = jnp.clip(images_of(dtype), low.astype(dtype), high.astype(dtype))
    radii = np.array([0.0, 0.05, 0.3])
    attack = BUILDERS[name](norm, attacks.cross_entropy, 4)
    # Of both types those that differ by it; the others in single precision alone, since each is compiled.
    others = NETWORKS if dtype == np.float32 else {"of NaN": NETWORKS["of NaN"]}
    for network in (model_of(dtype), *others.values()):
        labels = jnp.array([0, 1, 1])
        run = jax.jit(jax.vmap(lambda x, y, e, f=network: attack(KEY, f, x, y, e, e / 2)))
        ends = run(images, labels, jnp.asarray(radii, dtype))
        assert ends.dtype == dtype
        moved = (np.asarray(ends, np.float64) - np.asarray(images, np.float64)).reshape(3, -1)
        lengths = np.linalg.norm(moved, {"l1": 1, "l2": 2, "linf": np.inf}[norm], axis=1)
        assert (lengths <= radii.astype(dtype)).all()
        assert (np.abs(np.asarray(ends, np.float64)) <= 1).all()
        np.testing.assert_array_equal(ends[0], images[0])


@pytest.mark.parametrize("name", ["pgd", "pgd-restarts", "apgd", "square"])
def test_attacks_keep_to_a_range_for_each_channel(name, dtype):
    low, high = (-1.0, -0.5), (1.0, 0.5)
    build = {
        "pgd": lambda: attacks.pgd("linf", attacks.cross_entropy, 3, pixel_range=(low, high)),
        "pgd-restarts": lambda: attacks.pgd_restarts("linf", attacks.cross_entropy, 3, pixel_range=(low, high)),
        "apgd": lambda: attacks.as_attack(attacks.apgd("linf", steps=3, pixel_range=(low, high))),
        "square": lambda: attacks.as_attack(attacks.square("linf", 3, pixel_range=(low, high))),
    }
    image = jnp.clip(images_of(dtype)[0], np.asarray(low, dtype), np.asarray(high, dtype))
    end = build[name]()(KEY, model_of(dtype), image, 1, 0.4, 0.4)
    assert jnp.all((end >= np.asarray(low)) & (end <= np.asarray(high)))
    with pytest.raises(ValueError, match=r"expected pixels in \[-1 -0.5, 1 0.5\]"):
        build[name]()(KEY, model_of(dtype), jnp.ones((6, 6, 2), dtype), 1, 0.4, 0.4)
    with pytest.raises(ValueError, match=r"one for each channel of an image of shape \[6, 6, 1\]"):
        build[name]()(KEY, two_classes, jnp.zeros((6, 6, 1), dtype), 1, 0.4, 0.4)


@pytest.mark.parametrize(
    ("version", "norm", "dtype"),
    [("short", "linf", "float32"), ("short", "l2", "float64"), ("rand", "linf", "float32")],
    indirect=["dtype"],
)
def test_robust_accuracy_of_both_types(version, norm, dtype):
    """One image alone, radii one an image, and what is found lies within them; FAB and Square are tested above."""
    images, network = np.asarray(images_of(dtype)), model_of(dtype)
    labels = np.array([int(network(image).argmax()) for image in images])
    radii = np.array([0.0, 0.05, 3.0])
    found = attacks.robust_accuracy(network, images, labels, epsilon=radii, norm=norm, version=version)
    assert found.adversarial.dtype == dtype
    assert found.robust[0]
    assert not found.robust[2]
    assert np.all(~(found.distance > radii))
    alone = attacks.robust_accuracy(network, images[2:], labels[2:], epsilon=3.0, norm=norm, version=version)
    assert not alone.robust[0]


@pytest.mark.parametrize("name", attacks.LOSSES)
def test_every_loss_of_odd_logits(name, dtype):
    loss = attacks.LOSSES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for logits in ([1.0, 3.0], [0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [1e30, -1e30, 0.0, 1.0]):
            for label in (0, (0, 1)):
                value, slope = jax.value_and_grad(loss)(jnp.asarray(logits, dtype), label)
                assert value.dtype == dtype
                assert bool(jnp.isfinite(value) & jnp.all(jnp.isfinite(slope)))
                # To rise towards a target is to rise away from the label.
                assert slope[0] <= 1e-9
                assert slope[1] >= -1e-9
        assert jnp.isnan(loss(jnp.array([jnp.nan, 0.0], dtype), 0))


@pytest.mark.parametrize("name", [*gradients.ATTRIBUTIONS, "expected_gradients"])
def test_every_attribution_of_both_types(name, dtype):
    """Of a network of each type; of a constant one nothing, of one of NaN nothing that looks like something."""
    expected = gradients.expected_gradients(images_of(np.float32, 5))
    attribution = gradients.ATTRIBUTIONS.get(name, expected)
    image = images_of(dtype)[0]
    # Two classes in single precision alone, since each network is compiled.
    others = [model_of(dtype, classes=2)] if dtype == np.float32 else []
    for network in (model_of(dtype), *others):
        values = attribution(KEY, network, image)
        assert values.shape == (6, 6)
        assert bool(jnp.all(jnp.isfinite(values)))
        signed = gradients.SIGNED.get(name, attribution)(KEY, network, image)
        assert signed.shape in ((6, 6), (6, 6, 2), (6, 6, 1))
    if name in (*gradients.CONTROLS, "grad_cam"):  # GradCAM needs a network with convolutions.
        return
    np.testing.assert_allclose(attribution(KEY, NETWORKS["constant"], image), 0.0, atol=1e-6)
    assert not bool(jnp.any(jnp.isfinite(attribution(KEY, NETWORKS["of NaN"], image))))


def manifolds_of(dtype):
    images = np.asarray(images_of(dtype, 40))
    model = manifolds.Denoiser((2, 4, 4), 8)
    variables = manifolds.init_denoiser(model, (6, 6, 2), KEY).variables
    return {
        "pca": manifolds.pca(manifolds.fit_pca(images, 3)),
        "local-pca": manifolds.local_pca(images, 10, 3),
        "autoencoder": manifolds.autoencoder(lambda x: x.ravel()[:5], decoded),
        "denoiser": manifolds.from_denoiser(model, variables, dimensions=4),
    }


@pytest.mark.parametrize("name", ["pca", "local-pca", "autoencoder", "denoiser"])
def test_every_manifold_of_both_types(name, dtype):
    manifold, image = manifolds_of(dtype)[name], images_of(dtype)[0]
    found = gradients.align(model_of(dtype), manifold, image, image)
    assert 0 <= float(found.tangent_fraction) <= 1 + 1e-5
    basis, rank = manifold.tangent_space(image)
    own = np.asarray(basis, np.float64)[:, : int(rank)] if name != "denoiser" else np.asarray(basis, np.float64)
    products = own.T @ own
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-5)
    # A manifold that is NaN has no distances and no shares.
    broken = manifolds.autoencoder(lambda x: x.ravel()[:5], lambda z: decoded(z) * jnp.nan)
    found = gradients.align(model_of(dtype), broken, image, image)
    assert bool(jnp.isnan(found.distance) & jnp.isnan(found.tangent_fraction))


def test_every_statistic_of_both_types(dtype):
    """Of a map that is NaN every one is NaN; of a constant map those that are undefined."""
    network, image = model_of(dtype), images_of(dtype)[0]
    mask = jnp.eye(6, dtype=bool)

    def all_of(values):
        return {
            "road": faithfulness.road(KEY, network, image, 0, values).score,
            "deletion": faithfulness.deletion_and_insertion(KEY, network, image, values).deletion,
            "insertion": faithfulness.deletion_and_insertion(KEY, network, image, values).insertion,
            "infidelity": faithfulness.infidelity(KEY, network, image, values),
            "correlation": faithfulness.rank_correlation(values, jnp.arange(36.0).reshape(6, 6)),
            "pointing": faithfulness.agreement(KEY, values, mask).pointing,
            "mass": faithfulness.agreement(KEY, values, mask).mass,
            "overlap": faithfulness.agreement(KEY, values, mask).overlap,
            "smoothness": controls.smoothness(values),
            "sensitivity": faithfulness.max_sensitivity(KEY, network, image, lambda *_: values),
        }

    ramp = jnp.asarray(np.random.default_rng(3).uniform(size=(6, 6)), dtype)
    assert all(bool(jnp.isfinite(value)) for value in all_of(ramp).values())
    assert all(bool(jnp.isnan(value)) for value in all_of(ramp * jnp.nan).values())
    flat = all_of(jnp.zeros((6, 6), dtype))
    assert {name for name, value in flat.items() if bool(jnp.isnan(value))} == {
        *("correlation", "smoothness", "sensitivity")
    }


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
@pytest.mark.parametrize("name", training.OBJECTIVES)
def test_every_objective_trains_with_float64_on(name, dtype):
    recipe = training.Recipe("l2", name, attack_steps=2, smoothing=0.0 if name == "free" else 0.1)
    split = data.Split(np.asarray(images_of(dtype, 12)), np.arange(12) % 4)
    attack, step = recipe.attack_with(attacks.cross_entropy), recipe.step(MODEL, 3)
    start = stacking.stack([training.init_classifier(MODEL, (6, 6, 2), KEY)] * 2)
    options = {"mesh": stacking.device_mesh(2, 4), "batch_size": 4, "epochs": 1}
    trained = training.fit(step, start, training.StepSizes(np.array([0.1, 0.2]), 0.1, 1e-2, 1.0), split, **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained.variables)} == {np.dtype(np.float32)}
    if "trades" not in name:
        run = training.accuracies(MODEL, attack, stacking.device_mesh(2, 12), 12)
        assert run(trained.variables, split, KEY, np.full(12, 0.1), 0.1).shape == (2,)


def test_manifolds_that_are_trained_train_with_float64_on(dtype):
    images = np.random.default_rng(5).uniform(-1, 1, (4, 8, 8, 1)).astype(dtype)
    split = data.Split(images, np.arange(4))
    options = {"mesh": stacking.device_mesh(1, 4), "batch_size": 4, "epochs": 1}
    model, shape = manifolds.vae_gan_for((8, 8, 1)), (8, 8, 1)
    small = manifolds.Denoiser((2, 4, 4), 8)
    fitted = [
        (manifolds.vae_gan_step(model), manifolds.init_vae_gan(model, shape, KEY), manifolds.VaeGanSizes(0.01, 1e-3)),
        (manifolds.denoiser_step(small), manifolds.init_denoiser(small, shape, KEY), manifolds.DenoiserSizes(1e-3)),
    ]
    for step, start, sizes in fitted:
        trained = training.fit(step, stacking.stack([start]), sizes, split, **options)
        assert {leaf.dtype for leaf in jax.tree.leaves(trained.variables)} == {np.dtype(np.float32)}


def test_retraining_with_float64_on(dtype):
    split = data.Split(np.asarray(images_of(dtype, 12)), np.arange(12) % 4)
    options = {"classes": 4, "model": MODEL, "percentiles": (50.0,), "seeds": 1, "epochs": 1, "batch_size": 4}
    assert faithfulness.roar(model_of(dtype), gradients.gradient, split, split, **options).mean.shape == (1,)


def test_targets_are_reached_or_not():
    """A linear network's logits move by epsilon times the l1 norm of a difference of weights: exact answers."""
    images = np.random.default_rng(4).uniform(-0.3, 0.3, (40, 4, 4, 1)).astype(np.float32)
    logits = images.reshape(40, -1) @ WEIGHTS
    labels = logits.argmax(1)
    aims = (labels + 1) % 3
    # The least radius at which the target is the highest: a linear program; here two hyperplanes, so try its dual.
    found = attacks.robust_accuracy(linear, images, labels, epsilon=0.1, target=aims)
    ends = found.adversarial[~found.robust].reshape(-1, 16) @ WEIGHTS
    assert (ends.argmax(1) == aims[~found.robust]).all()
    assert (np.abs(found.adversarial - images).max() <= 0.1).all()
    # Where even the target against the label alone cannot turn, no attack may claim it, and where three classes' best
    # point does, one must find it.
    rows = np.arange(40)
    gap = logits[rows, labels] - logits[rows, aims]
    reach = 0.1 * np.abs(WEIGHTS.T[aims] - WEIGHTS.T[labels]).sum(1)
    assert found.robust[gap > reach].all()
    turned = images.reshape(40, -1) + 0.1 * np.sign(WEIGHTS.T[aims] - WEIGHTS.T[labels])
    sure = (turned @ WEIGHTS).argmax(1) == aims
    assert sure.sum() > 5
    assert not found.robust[sure].any()
    free = attacks.robust_accuracy(linear, images, labels, epsilon=0.1)
    assert free.robust.sum() < found.robust.sum()
    with pytest.raises(ValueError, match="expected targets other than the labels, got 40 that are equal"):
        attacks.robust_accuracy(linear, images, labels, epsilon=0.1, target=labels)
    several = attacks.robust_accuracy(linear, images, labels, epsilon=[0.1, 0.05], target=aims, version="short")
    assert several[0].robust.sum() <= several[1].robust.sum()


def test_a_restored_evaluation_is_of_the_same():
    images, labels, kept = SOME, np.array([int(linear(image).argmax()) for image in SOME]), []
    options = {"version": "short", "norm": "l2"}
    whole = attacks.robust_accuracy(linear, images, labels, epsilon=0.3, save=kept.append, **options)
    again = attacks.robust_accuracy(linear, images, labels, epsilon=0.3, restored=kept[0], **options)
    np.testing.assert_array_equal(whole.robust, again.robust)
    other = [
        ({"epsilon": 0.2}, "expected a restored evaluation with epsilon 0.2, got epsilon 0.3"),
        ({"norm": "linf"}, "with norm linf, got norm l2"),
        ({"images": images[::-1]}, "checksum"),
        ({"labels": (labels + 1) % 3}, "checksum"),
        ({"seed": 1}, "with seed 1, got seed 0"),
        ({"version": "standard"}, "with version standard, got version short"),
    ]
    for changed, message in other:
        given = {"images": images, "labels": labels, "epsilon": 0.3, "restored": kept[0]} | options | changed
        with pytest.raises(ValueError, match=message):
            attacks.robust_accuracy(linear, **given)
