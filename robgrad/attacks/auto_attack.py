"""AutoAttack (Croce and Hein, 2020): the field's yardstick of robust accuracy, an ensemble without knobs.

Each attack of the ensemble meets only what those before it left standing. Every image has random keys of its own, so
that none's fate depends on its batch.
"""

import math
import os
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from scipy.special import logsumexp

from robgrad import compiling, stacking
from robgrad.attacks import states
from robgrad.attacks.ensemble import Part, Version, ensemble
from robgrad.attacks.evaluation import WRONG, Evaluation
from robgrad.attacks.losses import cross_entropy
from robgrad.attacks.norms import L1, L2, LINF, NORMS, Norm, ended, norm_named
from robgrad.attacks.pool import Apply, Examples, Tools, attack_all, tools_of
from robgrad.attacks.search import targets
from robgrad.data import PIXEL_RANGE, DataError
from robgrad.data.calls import image_type, logits_of, of_one_image, rounded_down
from robgrad.data.checks import (
    HALF_RANGE,
    Range,
    checked_count,
    checked_images,
    checked_labels,
    checked_radius,
    checked_range,
    half_range,
)
from robgrad.networks import LogitsFn, predicted

STANDING = ""


class Keeping(NamedTuple):
    """How an evaluation is watched, gone on from and kept; see `auto_attack`."""

    progress: Callable[[str], None]
    restored: Mapping[str, np.ndarray] | None
    save: Callable[[dict[str, np.ndarray]], None] | None


class Asked(NamedTuple):
    """What is evaluated: images, labels or goals `(labels, targets)`, radii `[N]`, the seed of all that is random."""

    images: np.ndarray
    goals: Any
    radii: np.ndarray
    seed: int

    @property
    def labels(self) -> np.ndarray:
        """The images' classes."""
        return self.goals[0] if isinstance(self.goals, tuple) else self.goals

    def rows(self, rows: np.ndarray) -> "Asked":
        """Some of the images."""
        images, goals, radii = jax.tree.map(lambda leaf: leaf[rows], (self.images, self.goals, self.radii))
        return Asked(images, goals, radii, self.seed)

    def digest(self) -> str:
        """What tells these images, goals and radii from others."""
        return f"{zlib.crc32(b''.join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(self[:3]))):08x}"


class _Attacker:
    """The ensemble for one architecture, compiled as it is used: new variables, images and radii compile nothing."""

    def __init__(self, apply: Apply, norm: Norm, version: Version, pixel_range: Range, batch: int, targeted: bool):
        """Compiles nothing yet."""
        self.apply, self.norm, self.version, self.targeted = apply, norm, version, targeted
        self.pixel_range, self.batch = pixel_range, batch
        self.meshes: dict[tuple[int, ...], Mesh] = {}
        self.logits_of = compiling.compiled(jax.vmap(apply, in_axes=(None, 0)), None)
        loss = lambda variables, image, label: cross_entropy(apply(variables, image), label)  # noqa: E731
        self.slopes_of = compiling.compiled(jax.vmap(jax.grad(loss, 1), in_axes=(None, 0, 0)), None)
        self.ended = jax.jit(jax.vmap(lambda image, point, radius: ended(norm, image, point, radius, pixel_range)))
        self.compiled: dict[int, Tools] = {}
        self.parts: dict[int, tuple[list[Part], list[str]]] = {}

    def ensemble(self, classes: int) -> tuple[list[Part], list[str]]:
        """The parts for so many classes; the same values each time, so that what is compiled is found again."""
        if classes not in self.parts:
            self.parts[classes] = ensemble(self.version, self.norm, classes, self.pixel_range, self.targeted)
        return self.parts[classes]

    def mesh(self, variables, images: np.ndarray) -> Mesh:
        """The devices of this process, as the mesh's rule has it; several processes each do all of an evaluation."""
        shape = images.shape[1:]
        if shape not in self.meshes:
            intensity = stacking.intensity(self.apply, variables, jax.ShapeDtypeStruct(shape, images.dtype))
            self.meshes[shape] = stacking.device_mesh(1, self.batch, jax.local_devices(), intensity=intensity)
        return self.meshes[shape]

    def in_batches(self, function: Callable, *arrays: np.ndarray) -> np.ndarray:
        """A function of batches on any number of images, one shape on the device."""
        size, count = min(self.batch, len(arrays[0])), len(arrays[0])
        parts = []
        for first in range(0, count, size):
            rows = np.minimum(np.arange(first, first + size), count - 1)
            parts.append(np.asarray(function(*(one[rows] for one in arrays)))[: count - first])
        return np.concatenate(parts)

    def logits(self, variables, images: np.ndarray) -> np.ndarray:
        """Logits `[N, C]` of any number of images."""
        return self.in_batches(partial(self.logits_of, variables), images)

    def evaluate(self, variables, asked: Asked, keep: Keeping) -> Evaluation:
        """All parts in turn; see `auto_attack`."""
        progress, restored, save = keep
        images, labels = asked.images, asked.labels
        logits = self.logits(variables, images)
        parts, notes = self.ensemble(logits.shape[1])
        mesh = self.mesh(variables, images)
        right = predictions(logits) == labels
        broken_by = np.where(right, STANDING, WRONG).astype("U32")
        adversarial, first = images.copy(), 0
        standing = {"clean": int(right.sum())}
        identity = self.identity(asked)
        if restored is not None:
            _check_identity(restored, identity)
            if self.version != "rand":
                _check_network(restored, logits)
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
            some = asked.rows(left)
            aims = (some.goals[1] if self.targeted else every[left, part.rank]).astype(np.int32)
            if id(part.search) not in self.compiled:
                stride = 100 if part.search.steps > 1000 else 10
                lasting = math.prod(images.shape[1:-1]) > compiling.LARGE
                self.compiled[id(part.search)] = tools_of(self.apply, part.search, stride, mesh, lasting)
            tools = self.compiled[id(part.search)]
            size = min(self.batch, max(8, 1 << (len(left) - 1).bit_length()))
            size += -size % mesh.size
            examples = Examples(
                some.images, some.goals, aims, rounded_down(some.radii, images.dtype), _keys(asked.seed, index, left)
            )
            found, fallen = attack_all(tools, size, variables, examples)
            if part.name == "apgd-ce" and some.radii.max() > 0:
                notes = [*notes, *self.stuck(variables, some.goals, logits[left], found, fallen)]
            found, fallen = self.verified(variables, some, found, fallen)
            adversarial[left[fallen]], broken_by[left[fallen]] = found[fallen], part.name
            standing[part.name] = int((broken_by == STANDING).sum())
            if save is not None:
                names, counts = np.array(list(standing)), np.array(list(standing.values()))
                kept = {"broken_by": broken_by, "adversarial": adversarial, "parts": np.array(index + 1)}
                kept |= {"names": names, "standing": counts, "notes": np.array(notes, str), "identity": identity}
                kept |= {"clean_logits": logits}
                save(kept)
        robust = broken_by == STANDING
        found = ~robust & (broken_by != WRONG)
        distance = np.where(found, lengths(self.norm, adversarial, images), np.nan)
        noticed = self.distrust(variables, asked, logits, robust, standing)
        if found.any():
            nothing = int((predictions(self.logits(variables, adversarial[found])) < 0).sum())
            noticed += [_NOT_FINITE.format(nothing, int(found.sum()), "adversarial images")] if nothing else []
        return Evaluation(robust, broken_by, adversarial, distance, standing, (*notes, *noticed))

    def identity(self, asked: Asked) -> np.ndarray:
        """What an evaluation is of, a line each."""
        norm = next((name for name, one in NORMS.items() if one == self.norm), repr(self.norm.length))
        radii = np.unique(asked.radii)
        epsilon = f"{radii[0]:g}" if len(radii) == 1 else f"{radii[0]:g} to {radii[-1]:g}, one an image"
        goal = " and targets" if self.targeted else ""
        return np.array(
            [
                *(f"norm {norm}", f"epsilon {epsilon}", f"version {_named(self.version)}", f"seed {asked.seed}"),
                *(f"pixel range {self.pixel_range}", f"images, labels{goal} and radii of checksum {asked.digest()}"),
            ]
        )

    def verified(self, variables, asked: Asked, found, fallen) -> tuple[np.ndarray, np.ndarray]:
        """What is within ball and range in double precision, rounding taken back, and reaches the goal once more."""
        if not fallen.any():
            return found, fallen
        inside = self.in_batches(self.ended, asked.images, found, rounded_down(asked.radii, asked.images.dtype))
        near = lengths(self.norm, inside, asked.images) <= asked.radii
        reached = predictions(self.logits(variables, inside))
        reached = reached == asked.goals[1] if self.targeted else reached != asked.labels
        return inside, fallen & near & reached

    def stuck(self, variables, goals, clean, found, fallen) -> list[str]:
        """A line where ascending the cross-entropy has not raised it."""
        if fallen.all():
            return []
        sign, of = (-1, goals[1]) if self.targeted else (1, goals)
        before = sign * _excess(clean[~fallen], of[~fallen])
        after = sign * _excess(self.logits(variables, found[~fallen]), of[~fallen])
        count = int(np.sum(~(after > before)))
        said = f"the loss that apgd-ce ascends has not risen on {count} of {len(after)} images that it left standing"
        return [said] if count > 0.05 * len(after) else []

    def distrust(self, variables, asked: Asked, logits, robust, standing) -> list[str]:
        """Lines about what an evaluation should not be believed for."""
        images, labels = asked.images, asked.labels
        notes, some = [], slice(0, min(len(images), 1000))
        nothing = int((predictions(logits) < 0).sum())
        if nothing:
            notes.append(_NOT_FINITE.format(nothing, len(images), "images"))
        if self.pixel_range == PIXEL_RANGE and half_range(images):
            notes.append(HALF_RANGE)
        if np.all(logits >= 0) and np.allclose(logits.sum(1), 1.0, atol=1e-4):
            notes.append("the outputs look like probabilities: expected logits; gradients of probabilities vanish")
        if not np.allclose(self.logits(variables, images[some]), logits[some], rtol=1e-4, atol=1e-5, equal_nan=True):
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
        if asked.radii.max() > 0 and robust.any() and standing["clean"] == int(robust.sum()) and len(images) > 20:
            notes.append("no attack broke any image: expected some, unless epsilon is tiny")
        return notes


_NOT_FINITE = "the outputs are not finite on {} of {} {}: they are of no class, and count as wrong"


def predictions(logits: np.ndarray) -> np.ndarray:
    """`networks.predicted`, back on the host."""
    return np.asarray(predicted(jnp.asarray(logits)))


def _named(version: Version) -> str:
    """A version as an evaluation says of itself what it is."""
    if isinstance(version, str):
        return version
    return ", ".join(one if isinstance(one, str) else f"own attack {states.named(one)}" for one in version)


def _check_identity(restored: Mapping[str, np.ndarray], identity: np.ndarray) -> None:
    held = restored["identity"].tolist() if "identity" in restored else ["nothing that says what it is of"]
    differing = [(one, other) for one, other in zip(identity.tolist(), held, strict=False) if one != other]
    if differing:
        wanted, got = differing[0]
        raise ValueError(
            f"expected a restored evaluation with {wanted}, got {got}; give restored=None, or another state file, to "
            "begin it anew"
        )


def _check_network(restored: Mapping[str, np.ndarray], logits: np.ndarray) -> None:
    """That the network gives the images the logits that it gave when the state was written, but for rounding."""
    held = restored.get("clean_logits")
    largest = np.max(np.abs(logits), initial=0.0, where=np.isfinite(logits))
    if (
        held is None
        or held.shape != logits.shape
        or not np.allclose(held, logits, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)
    ):
        raise ValueError(
            "expected a restored evaluation of this network, got one of a network with other logits at the images; "
            "give restored=None, or another state file, to begin it anew"
        )


def _excess(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """logsumexp_{j != y} z_j - z_y, with which the cross-entropy rises, in double precision."""
    own = np.arange(logits.shape[1]) == labels[:, None]
    others = np.where(own, -np.inf, logits.astype(np.float64))
    with np.errstate(invalid="ignore"):
        return logsumexp(others, axis=1) - logits[own]


def _keys(seed: int, part: int, images: np.ndarray) -> Array:
    """A random key for each image and part, whatever else there is."""
    one = jax.random.fold_in(jax.random.key(seed), part)
    return jax.vmap(lambda index: jax.random.fold_in(one, index))(jnp.asarray(images))


def lengths(norm: Norm, attacked: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Lengths of perturbations `[N]`, in double precision on the host for l1, l2 and l-inf."""
    moved = (attacked.astype(np.float64) - images).reshape(len(images), -1)
    if norm is LINF:
        return np.abs(moved).max(1)
    if norm is L1:
        return np.abs(moved).sum(1)
    if norm is L2:
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
    epsilon: Any,
    target: Any = None,
    pixel_range: Range = PIXEL_RANGE,
    version: Version = "standard",
    seed: int = 0,
    batch: int = 100,
    progress: Callable[[str], None] = lambda line: None,
    restored: Mapping[str, np.ndarray] | None = None,
    save: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> Evaluation:
    """Robust accuracy of a network under AutoAttack.

    Logits that are not finite are of no class: such an image is wrong, and a point of the ball where the network
    answers so breaks it; the notes count them.

    Args:
      logits_fn: the network, a function of one image `[H, W, C]` to logits `[C]`, or of a batch; give the same one
        again and nothing is compiled anew, whatever the images and radii. With `variables` a function of those, too.
      images: `[N, H, W, C]`, floating point in `pixel_range`, or bytes, which are mapped to it.
      labels: `[N]` (or `[N, 1]`), their classes.
      variables: of the network, so that networks of one architecture share what is compiled.
      norm: `"linf"`, `"l2"`, `"l1"`, or an `attacks.Norm` of those.
      epsilon: radius, in pixel units; one for all, or one an image `[N]`.
      target: for a targeted evaluation the class that each image shall be taken for, one for all or one an image
        `[N]`, other than its label: an image is broken only where the network predicts that.
      pixel_range: smallest and largest value of a pixel, as the network expects them; numbers, or one for each
        channel, where mean and deviation lie outside the network.
      version: `"standard"`, `"plus"`, `"rand"` or `"short"`, or attacks of your own choice by name and as functions,
        for instance `("apgd-ce", "square", my_attack)`; see `ensemble`.
      seed: of everything random.
      batch: images at a time, over all devices of this process; memory depends on it alone.
      progress: called with a line before each attack, for instance `print`.
      restored, save: `save` is called with arrays after each attack; given back as `restored`, they are gone on from,
        if they are of the same network, images, labels, radii and settings.

    Raises:
      DataError: if images, labels or targets are not of that form.
      ValueError: for a negative or infinite epsilon, an unknown norm or version, a state of another evaluation, or a
        network that takes neither an image nor a batch.
    """
    norm, pixel_range = norm_named(norm), checked_range(pixel_range)
    checked_count("image in a batch", batch)
    checked_count("for a seed", seed, 0)
    images = checked_images(images, pixel_range)
    count, shape = len(images), images.shape[1:]
    given = () if variables is None else (variables,)
    logits_fn = of_one_image(logits_fn, shape, *given)
    images = images.astype(image_type(logits_fn, shape, images.dtype, *given))
    classes = logits_of(logits_fn, shape, *given, dtype=images.dtype).shape[0]
    goals: Any = checked_labels(labels, count, classes)
    if target is not None:
        targets = np.broadcast_to(target, count) if np.ndim(target) == 0 else target
        targets = checked_labels(targets, count, classes, "target")
        if (targets == goals).any():
            raise DataError(
                f"expected targets other than the labels, got {int((targets == goals).sum())} that are equal"
            )
        goals = (goals, targets)
    asked = Asked(images, goals, checked_radius("epsilon", epsilon, count), seed)
    logits_fn = _hashable(logits_fn)
    apply = _without_variables(logits_fn) if variables is None else logits_fn
    version = version if isinstance(version, str) else tuple(version)
    attacker = _attacker(apply, norm, version, pixel_range, batch, target is not None)
    return attacker.evaluate(variables, asked, Keeping(progress, restored, save))


def robust_accuracy(
    logits_fn: LogitsFn, images, labels, *, epsilon: Any, state: str | os.PathLike | None = None, **options
):
    """Robust accuracy under AutoAttack, at one radius or along several.

    Args:
      logits_fn, images, labels: as for `auto_attack`.
      epsilon: a radius, or an array `[N]` of one an image; or a list or tuple of several radii, along which images that
        a smaller one breaks are not attacked again.
      state: a file that is written after each attack and read at the start, so that an evaluation that was
        interrupted goes on where it was; it must be of the same network, images, labels, radii and settings.
      options: as for `auto_attack`, for instance `norm="linf"`, `version="standard"`, `pixel_range=(0.0, 1.0)`,
        `target=3`.

    Returns:
      An `Evaluation`, or a list of them, one a radius in the order given.

    Raises:
      DataError, ValueError: as `auto_attack`, and if the state is damaged or of another evaluation.

    Example:
      >>> import jax.numpy as jnp
      >>> from robgrad import attacks
      >>> logits_fn = lambda image: jnp.stack([image.sum(), -image.sum(), 0.1 * image[0, 0, 0]])
      >>> images = jnp.array([0.1, 0.4, 0.8]).reshape(3, 1, 1, 1) * jnp.array([1, 1, 1, -1]).reshape(4, 1, 1)
      >>> attacks.robust_accuracy(logits_fn, images, jnp.zeros(3, int), epsilon=0.3).robust.tolist()
      [False, False, True]
    """
    watched = options.get("restored") is not None or options.get("save") is not None
    if watched and state is not None:
        raise ValueError("expected a state file, or arrays to go on from, got both")
    options = {name: value for name, value in options.items() if name not in ("restored", "save") or watched}
    held = {} if state is None else states.read(state)

    def kept(radius: str) -> dict[str, Any]:
        """What an evaluation at one radius goes on from, and where it is saved."""
        if state is None:
            return {}

        def save(arrays: states.State) -> None:
            held[radius] = arrays
            states.write(state, held)

        return {"restored": held.get(radius), "save": save}

    if not isinstance(epsilon, list | tuple):
        return auto_attack(logits_fn, images, labels, epsilon=epsilon, **options, **kept("one"))
    if not epsilon:
        raise ValueError("expected a radius or several, got none")
    if watched:
        raise ValueError("expected one radius where arrays are saved or gone on from, got several; give state=")
    images, labels = np.asarray(images), np.asarray(labels)
    radii = [float(checked_radius("epsilon", radius, 1)[0]) for radius in epsilon]
    found: dict[float, Evaluation] = {}
    before: Evaluation | None = None
    for radius in sorted({*radii}):
        if before is None:
            before = auto_attack(logits_fn, images, labels, epsilon=radius, **options, **kept(repr(radius)))
        elif before.robust.any():
            left = np.flatnonzero(before.robust)
            one_each = np.ndim(options.get("target", 0)) > 0
            some = options | ({"target": np.asarray(options["target"])[left]} if one_each else {})
            again = auto_attack(logits_fn, images[left], labels[left], epsilon=radius, **some, **kept(repr(radius)))
            before = _merged(before, left, again)
        found[radius] = before
    return [found[radius] for radius in radii]


def _merged(before: Evaluation, left: np.ndarray, again: Evaluation) -> Evaluation:
    """What a smaller radius broke, and what a larger one has made of the rest."""
    names = ("robust", "broken_by", "adversarial", "distance")
    merged = {name: getattr(before, name).copy() for name in names}
    for name, whole in merged.items():
        whole[left] = getattr(again, name)
    notes = tuple(dict.fromkeys((*before.notes, *again.notes)))
    return Evaluation(**merged, standing=again.standing | {"clean": before.standing["clean"]}, notes=notes)
