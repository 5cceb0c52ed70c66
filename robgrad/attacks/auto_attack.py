"""AutoAttack (Croce and Hein, 2020): the field's yardstick of robust accuracy, an ensemble without knobs.

Each attack of the ensemble meets only what those before it left standing. Every image has random keys of its own, so
that none's fate depends on its batch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from scipy.special import logsumexp

from robgrad import stacking
from robgrad.attacks.ensemble import Part, ensemble
from robgrad.attacks.evaluation import Evaluation
from robgrad.attacks.losses import cross_entropy
from robgrad.attacks.norms import LINF, Norm, norm_named
from robgrad.attacks.pool import Apply, Examples, Tools, attack_all, tools_of
from robgrad.attacks.search import targets
from robgrad.data import PIXEL_RANGE
from robgrad.data.images import checked_images, checked_labels, checked_radius, classes_of, of_one_image
from robgrad.networks import LogitsFn

STANDING, WRONG = "", "wrong from the start"


class Keeping(NamedTuple):
    """How an evaluation is watched, gone on from and kept; see `auto_attack`."""

    progress: Callable[[str], None]
    restored: Mapping[str, np.ndarray] | None
    save: Callable[[dict[str, np.ndarray]], None] | None


class _Attacker:
    """The ensemble for one architecture, compiled as it is used: new variables, images and radii compile nothing."""

    def __init__(self, apply: Apply, norm: Norm, version: str, pixel_range: tuple[float, float], batch: int):
        """Compiles nothing yet."""
        self.apply, self.norm, self.version = apply, norm, version
        self.pixel_range, self.batch = pixel_range, batch
        self.meshes: dict[tuple[int, ...], Mesh] = {}
        self.logits_of = stacking.compiled(jax.vmap(apply, in_axes=(None, 0)), None)
        loss = lambda variables, image, label: cross_entropy(apply(variables, image), label)  # noqa: E731
        self.slopes_of = stacking.compiled(jax.vmap(jax.grad(loss, 1), in_axes=(None, 0, 0)), None)
        self.compiled: dict[int, Tools] = {}
        self.parts: dict[int, tuple[list[Part], list[str]]] = {}

    def ensemble(self, classes: int) -> tuple[list[Part], list[str]]:
        """The parts for so many classes; the same values each time, so that what is compiled is found again."""
        if classes not in self.parts:
            self.parts[classes] = ensemble(self.version, self.norm, classes, self.pixel_range)
        return self.parts[classes]

    def mesh(self, variables, image_shape: tuple[int, ...]) -> Mesh:
        """The devices of this process, as the mesh's rule has it; several processes each do all of an evaluation."""
        if image_shape not in self.meshes:
            intensity = stacking.intensity(self.apply, variables, jax.ShapeDtypeStruct(image_shape, jnp.float32))
            self.meshes[image_shape] = stacking.device_mesh(1, self.batch, jax.local_devices(), intensity=intensity)
        return self.meshes[image_shape]

    def in_batches(self, function: Callable, *arrays: np.ndarray) -> np.ndarray:
        """A function of batches on any number of images, one shape on the device."""
        size, count = min(self.batch, len(arrays[0])), len(arrays[0])
        parts = []
        for first in range(0, count, size):
            rows = np.minimum(np.arange(first, first + size), count - 1)
            parts.append(np.asarray(function(*(one[rows] for one in arrays)))[: count - first])
        return np.concatenate(parts)

    def evaluate(self, variables, images, labels, epsilon: float, seed: int, keep: Keeping) -> Evaluation:
        """All parts in turn; see `auto_attack`."""
        progress, restored, save = keep
        logits = self.in_batches(partial(self.logits_of, variables), images)
        parts, notes = self.ensemble(logits.shape[1])
        mesh = self.mesh(variables, images.shape[1:])
        right = logits.argmax(1) == labels
        broken_by = np.where(right, STANDING, WRONG).astype("U32")
        adversarial, first = images.copy(), 0
        standing = {"clean": int(right.sum())}
        if restored is not None:
            broken_by, adversarial = restored["broken_by"].copy(), restored["adversarial"].copy()
            first = int(restored["parts"])
            notes = restored["notes"].tolist()
            standing = dict(zip(restored["names"].tolist(), restored["standing"].tolist(), strict=True))
        every = np.asarray(jax.vmap(targets)(jnp.asarray(logits), jnp.asarray(labels)))
        for index, part in enumerate(parts):
            left = np.flatnonzero(broken_by == STANDING)
            if index < first or not len(left):
                standing.setdefault(part.name, len(left))
                continue
            progress(f"{part.name}: {len(left)} of {len(images)} images left")
            keys = _keys(seed, index, left)
            aims = every[left, part.rank].astype(np.int32)
            if id(part.search) not in self.compiled:
                stride = 100 if part.search.steps > 1000 else 10
                self.compiled[id(part.search)] = tools_of(self.apply, part.search, stride, mesh)
            tools = self.compiled[id(part.search)]
            size = min(self.batch, max(8, 1 << (len(left) - 1).bit_length()))
            size += -size % mesh.size
            examples = Examples(images[left], labels[left], aims, keys)
            found, fallen = attack_all(tools, size, variables, examples, epsilon)
            if part.name == "apgd-ce" and epsilon > 0:
                notes = [*notes, *self.stuck(variables, labels[left], logits[left], found, fallen)]
            found, fallen = self.verified(variables, images[left], labels[left], found, fallen, epsilon)
            adversarial[left[fallen]], broken_by[left[fallen]] = found[fallen], part.name
            standing[part.name] = int((broken_by == STANDING).sum())
            if save is not None:
                names, counts = np.array(list(standing)), np.array(list(standing.values()))
                kept = {"broken_by": broken_by, "adversarial": adversarial, "parts": np.array(index + 1)}
                save(kept | {"names": names, "standing": counts, "notes": np.array(notes, str)})
        robust = broken_by == STANDING
        found = ~robust & (broken_by != WRONG)
        distance = np.where(found, lengths(self.norm, adversarial, images), np.nan)
        noticed = self.distrust(variables, images, labels, logits, robust, standing, epsilon)
        return Evaluation(robust, broken_by, adversarial, distance, standing, (*notes, *noticed))

    def verified(self, variables, images, labels, found, fallen, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        """What is within ball and range in double precision, rounding taken back, and misclassified once more."""
        if not fallen.any():
            return found, fallen
        moved = found.astype(np.float64) - images
        scale = np.minimum(1.0, epsilon / np.maximum(lengths(self.norm, found, images), 1e-300))
        moved *= np.where(scale < 1, scale * (1 - 1e-6), 1.0).reshape(-1, 1, 1, 1)
        inside = np.clip(images + moved, *self.pixel_range).astype(np.float32)
        near = lengths(self.norm, inside, images) <= epsilon * (1 + 1e-6) + 1e-9
        wrong = self.in_batches(partial(self.logits_of, variables), inside).argmax(1) != labels
        return inside, fallen & near & wrong

    def stuck(self, variables, labels, clean, found, fallen) -> list[str]:
        """A line where ascending the cross-entropy has not raised it."""
        if fallen.all():
            return []
        before = _excess(clean[~fallen], labels[~fallen])
        after = _excess(self.in_batches(partial(self.logits_of, variables), found[~fallen]), labels[~fallen])
        count = int(np.sum(~(after > before)))
        said = f"the loss that apgd-ce ascends has not risen on {count} of {len(after)} images that it left standing"
        return [said] if count > 0.05 * len(after) else []

    def distrust(self, variables, images, labels, logits, robust, standing, epsilon: float) -> list[str]:
        """Lines about what an evaluation should not be believed for."""
        notes, some = [], slice(0, min(len(images), 1000))
        if np.all(logits >= 0) and np.allclose(logits.sum(1), 1.0, atol=1e-4):
            notes.append("the outputs look like probabilities: expected logits; gradients of probabilities vanish")
        if not np.allclose(
            self.in_batches(partial(self.logits_of, variables), images[some]), logits[some], rtol=1e-4, atol=1e-5
        ):
            notes.append("the outputs differ between two calls: the network is random; use version='rand'")
        slopes = self.in_batches(partial(self.slopes_of, variables), images[some], labels[some]).reshape(
            len(images[some]), -1
        )
        finite = np.isfinite(slopes).all(1)
        zero = finite & (np.abs(slopes).max(1) == 0)
        for count, what in ((int(zero.sum()), "zero"), (int((~finite).sum()), "not finite")):
            if count > 0.05 * len(slopes):
                notes.append(
                    f"the loss gradient is {what} on {count} of {len(slopes)} images: gradients are masked, and "
                    "attacks that follow them say little"
                )
        by_gradients = [count for name, count in standing.items() if name not in ("clean", "square")]
        if "square" in standing and by_gradients:
            more = min(by_gradients) - standing["square"]
            if more > 0.002 * len(images):
                notes.append(f"Square, which sees no gradient, broke {more} images that attacks by gradient could not")
        if epsilon > 0 and robust.any() and standing["clean"] == int(robust.sum()) and len(images) > 20:
            notes.append("no attack broke any image: expected some, unless epsilon is tiny")
        return notes


def _excess(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """logsumexp_{j != y} z_j - z_y, with which the cross-entropy rises, in double precision."""
    own = np.arange(logits.shape[1]) == labels[:, None]
    others = np.where(own, -np.inf, logits.astype(np.float64))
    return logsumexp(others, axis=1) - logits[own]


def _keys(seed: int, part: int, images: np.ndarray) -> Array:
    """A random key for each image and part, whatever else there is."""
    one = jax.random.fold_in(jax.random.key(seed), part)
    return jax.vmap(lambda index: jax.random.fold_in(one, index))(jnp.asarray(images))


def lengths(norm: Norm, attacked: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Lengths of perturbations `[N]`, in double precision on the host for l2 and l-inf."""
    moved = (attacked.astype(np.float64) - images).reshape(len(images), -1)
    if norm is LINF:
        return np.abs(moved).max(1)
    if norm is norm_named("l2"):
        return np.linalg.norm(moved, axis=1)
    return np.asarray(jax.vmap(norm.length)(jnp.asarray(moved)), np.float64)


def _hashable(logits_fn: Callable) -> Callable:
    """The function given, or, if it is a module that holds arrays and has no hash, one that calls it."""
    try:
        hash(logits_fn)
    except TypeError:
        return lambda *arguments: logits_fn(*arguments)
    return logits_fn


@lru_cache(maxsize=8)
def _without_variables(logits_fn: LogitsFn) -> Apply:
    return lambda variables, image: logits_fn(image)


@lru_cache(maxsize=8)
def _attacker(*arguments) -> _Attacker:
    return _Attacker(*arguments)


def auto_attack(
    logits_fn: LogitsFn | Apply,
    images,
    labels,
    *,
    variables: Any = None,
    norm: Norm | str = "linf",
    epsilon: float,
    pixel_range: tuple[float, float] = PIXEL_RANGE,
    version: str = "standard",
    seed: int = 0,
    batch: int = 100,
    progress: Callable[[str], None] = lambda line: None,
    restored: Mapping[str, np.ndarray] | None = None,
    save: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> Evaluation:
    """Robust accuracy of a network under AutoAttack.

    Args:
      logits_fn: the network, a function of one image `[H, W, C]` to logits `[C]`, or of a batch; give the same one
        again and nothing is compiled anew, whatever the images and radii. With `variables` a function of those, too.
      images: `[N, H, W, C]`, floating point in `pixel_range`, or bytes, which are mapped to it.
      labels: `[N]` (or `[N, 1]`), their classes.
      variables: of the network, so that networks of one architecture share what is compiled.
      norm: `"linf"`, `"l2"`, or an `attacks.Norm` of those.
      epsilon: radius, in pixel units.
      pixel_range: smallest and largest value of a pixel, as the network expects them.
      version: `"standard"`, `"plus"`, `"rand"` or `"short"`; see `ensemble`.
      seed: of everything random.
      batch: images at a time, over all devices of this process; memory depends on it alone.
      progress: called with a line before each attack, for instance `print`.
      restored, save: `save` is called with arrays after each attack; given back as `restored`, they are gone on from.

    Raises:
      DataError: if images or labels are not of that form.
      ValueError: for a negative or infinite epsilon, an unknown norm or version, or a network that takes
        neither an image nor a batch.
    """
    norm = norm_named(norm)
    images = checked_images(images, pixel_range)
    given = () if variables is None else (variables,)
    logits_fn = of_one_image(logits_fn, images.shape[1:], *given)
    labels = checked_labels(labels, len(images), classes_of(logits_fn, images.shape[1:], *given))
    checked_radius("epsilon", epsilon, 1)
    logits_fn = _hashable(logits_fn)
    apply = _without_variables(logits_fn) if variables is None else logits_fn
    attacker = _attacker(apply, norm, version, tuple(pixel_range), batch)
    return attacker.evaluate(variables, images, labels, float(epsilon), seed, Keeping(progress, restored, save))


def robust_accuracy(logits_fn: LogitsFn, images, labels, *, epsilon: float | Sequence[float], **options):
    """Robust accuracy under AutoAttack, at one radius or along several.

    Args:
      logits_fn, images, labels: as for `auto_attack`.
      epsilon: a radius, or radii; images that a smaller one breaks are not attacked again.
      options: as for `auto_attack`, for instance `norm="linf"`, `version="standard"`, `pixel_range=(0.0, 1.0)`.

    Returns:
      An `Evaluation`, or a list of them, one a radius in the order given.

    Example:
      >>> import jax.numpy as jnp
      >>> from robgrad import attacks
      >>> logits_fn = lambda image: jnp.stack([image.sum(), -image.sum(), 0.1 * image[0, 0, 0]])
      >>> images = jnp.array([0.1, 0.4, 0.8]).reshape(3, 1, 1, 1) * jnp.ones((3, 4, 4, 1))
      >>> attacks.robust_accuracy(logits_fn, images, jnp.zeros(3, int), epsilon=0.5).robust.tolist()
      [False, False, True]
    """
    if np.ndim(epsilon) == 0:
        return auto_attack(logits_fn, images, labels, epsilon=epsilon, **options)  # type: ignore[arg-type]
    images, labels = np.asarray(images), np.asarray(labels)
    found: dict[float, Evaluation] = {}
    before: Evaluation | None = None
    for radius in sorted(map(float, epsilon)):  # type: ignore[arg-type]
        if before is None:
            before = auto_attack(logits_fn, images, labels, epsilon=radius, **options)
        elif before.robust.any():
            left = np.flatnonzero(before.robust)
            again = auto_attack(logits_fn, images[left], labels[left], epsilon=radius, **options)
            before = _merged(before, left, again)
        found[radius] = before
    return [found[float(radius)] for radius in epsilon]  # type: ignore[union-attr]


def _merged(before: Evaluation, left: np.ndarray, again: Evaluation) -> Evaluation:
    """What a smaller radius broke, and what a larger one has made of the rest."""
    names = ("robust", "broken_by", "adversarial", "distance")
    merged = {name: getattr(before, name).copy() for name in names}
    for name, whole in merged.items():
        whole[left] = getattr(again, name)
    notes = tuple(dict.fromkeys((*before.notes, *again.notes)))
    return Evaluation(**merged, standing=again.standing | {"clean": before.standing["clean"]}, notes=notes)
