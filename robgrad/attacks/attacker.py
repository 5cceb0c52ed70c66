"""AutoAttack's ensemble for one architecture: its attacks in turn, each on what those before it left standing."""

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from robgrad import compiling, stacking
from robgrad.attacks import doubts, states
from robgrad.attacks.ensemble import Part, Version, ensemble
from robgrad.attacks.evaluation import WRONG, Evaluation
from robgrad.attacks.losses import cross_entropy
from robgrad.attacks.norms import L1, L2, LINF, NORMS, Norm, ended
from robgrad.attacks.pool import Apply, Examples, Tools, attack_all, tools_of
from robgrad.attacks.search import Search, targets
from robgrad.data.calls import rounded_down
from robgrad.data.checks import Range

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


class Attacker:
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
        right = doubts.predictions(logits) == labels
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
        index = first
        while index < len(parts):
            left = np.flatnonzero(broken_by == STANDING)
            turns, name = together(parts[index:], len(left), 4 * self.batch), parts[index].name
            begins, index = index, index + len(turns)
            if not len(left):
                standing.setdefault(name, 0)
                continue
            some = asked.rows(left)
            aims = [some.goals[1] if self.targeted else every[left, part.rank] for part in turns]
            keys = jnp.concatenate([_keys(asked.seed, begins + turn, left) for turn in range(len(turns))])
            told = lambda still, name=name: progress(f"{name}: {still} of {len(images)} images left")  # noqa: E731
            found, fallen = self.attack(variables, some, np.array(aims, np.int32), keys, turns[0].search, told)
            if name == "apgd-ce" and some.radii.max() > 0 and not fallen.all():
                after, of = self.logits(variables, found[~fallen]), some.goals[1] if self.targeted else some.goals
                notes = [*notes, *doubts.not_risen(logits[left][~fallen], after, of[~fallen], self.targeted)]
            adversarial[left[fallen]], broken_by[left[fallen]] = found[fallen], name
            standing[name] = int((broken_by == STANDING).sum())
            if save is not None:
                names, counts = np.array(list(standing)), np.array(list(standing.values()))
                kept = {"broken_by": broken_by, "adversarial": adversarial, "parts": np.array(index)}
                kept |= {"names": names, "standing": counts, "notes": np.array(notes, str), "identity": identity}
                kept |= {"clean_logits": logits}
                save(kept)
        robust = broken_by == STANDING
        found = ~robust & (broken_by != WRONG)
        distance = np.where(found, lengths(self.norm, adversarial, images), np.nan)
        noticed = self.doubts(variables, asked, logits, standing)
        if found.any():
            noticed += doubts.not_finite(self.logits(variables, adversarial[found]), "adversarial images")
        return Evaluation(robust, broken_by, adversarial, distance, standing, (*notes, *noticed))

    def attack(self, variables, some: Asked, aims, keys, search: Search, told) -> tuple[np.ndarray, np.ndarray]:
        """One search, at all its turns, of images that stand: the points that it ends at, and whether they are right.

        What falls in the turn of one class but does not stand up to `verified` goes on with the turns after it.
        """
        mesh, large = self.mesh(variables, some.images), math.prod(some.images.shape[1:-1]) > compiling.LARGE
        if id(search) not in self.compiled:
            self.compiled[id(search)] = tools_of(self.apply, search, 100 if search.steps > 1000 else 10, mesh, large)
        tools, size = self.compiled[id(search)], slots(aims.size, self.batch, mesh.size, fine=large)
        radii, turns = rounded_down(some.radii, some.images.dtype), len(aims)
        examples, since = Examples(some.images, some.goals, aims, radii, keys), np.zeros(len(some.images), int)
        found, fallen = some.images.copy(), np.zeros(len(some.images), bool)
        while (since < turns).any():
            points, fell = attack_all(tools, size, variables, examples, since, told)
            inside, right = self.verified(variables, some, points, fell < turns)
            rows = since < turns
            found[rows], fallen = np.where(right[:, *[None] * 3], inside, points)[rows], fallen | right
            since = np.where((fell < turns) & ~right, fell + 1, turns)
        return found, fallen

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
        reached = doubts.predictions(self.logits(variables, inside))
        reached = reached == asked.goals[1] if self.targeted else reached != asked.labels
        return inside, fallen & near & reached

    def doubts(self, variables, asked: Asked, logits: np.ndarray, standing: Mapping[str, int]) -> list[str]:
        """Lines about what the evaluation should not be believed for."""
        some, labels = asked.images[:1000], asked.labels[:1000]
        again = self.logits(variables, some)
        slopes = self.in_batches(partial(self.slopes_of, variables), some, labels)
        return [
            *doubts.of_outputs(asked.images, logits, again, self.pixel_range),
            *doubts.of_slopes(slopes),
            *doubts.of_standing(standing, len(asked.images), asked.radii.max() > 0),
        ]


def _named(version: Version) -> str:
    """A version as an evaluation says of itself what it is."""
    if isinstance(version, str):
        return version
    return ", ".join(one if isinstance(one, str) else f"own attack {states.named(one)}" for one in version)


def together(parts: Sequence[Part], count: int, wanted: int) -> list[Part]:
    """The first part, and as many after it of the same search as keep batches full: `wanted` attacks of `count` images.

    Few images that stand would leave most of a batch empty for each class that is aimed at.
    """
    most = max(1, -(-wanted // max(count, 1)))
    return [*itertools.takewhile(lambda part: part.search is parts[0].search, parts[:most])]


def slots(count: int, batch: int, devices: int, fine: bool) -> int:
    """Slots of a batch for so many attacks, at most `batch`, that divide among the devices.

    As many as fill each turn of the batch alike, rounded up: to a power of two, so that few programs are compiled, or
    `fine` by a quarter at most, where empty slots cost more than compiling.
    """
    least = max(8, -(-count // -(-count // batch)))
    unit = 1 << max(0, least.bit_length() - 3) if fine else 1 << (least - 1).bit_length()
    size = min(batch, -(-least // unit) * unit)
    return size + -size % devices


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
