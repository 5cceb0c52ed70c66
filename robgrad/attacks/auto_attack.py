"""AutoAttack (Croce and Hein, 2020): the field's yardstick of robust accuracy, an ensemble without knobs.

Each attack of the ensemble meets only what those before it left standing. Every image has random keys of its own, so
that none's fate depends on its batch.
"""

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from robgrad.attacks import states
from robgrad.attacks.attacker import Asked, Attacker, Keeping
from robgrad.attacks.ensemble import Version
from robgrad.attacks.evaluation import Evaluation
from robgrad.attacks.norms import Norm, norm_named
from robgrad.attacks.pool import Apply
from robgrad.data import PIXEL_RANGE, DataError
from robgrad.data.calls import image_type, logits_of, of_one_image
from robgrad.data.checks import Range, checked_count, checked_images, checked_labels, checked_radius, checked_range
from robgrad.networks import LogitsFn, OfOne, with_fast_convolutions


def _hashable(logits_fn: Callable) -> Callable:
    """The function given, or, if it is a module that holds arrays and has no hash, one that calls it."""
    try:
        hash(logits_fn)
    except TypeError:
        return lambda *arguments: logits_fn(*arguments)
    return logits_fn


@lru_cache(maxsize=8)
def _without_variables(logits_fn: LogitsFn) -> Apply:
    # Of networks of robgrad's kinds it has been seen to.
    own = logits_fn if isinstance(logits_fn, OfOne) else with_fast_convolutions(logits_fn)
    return lambda variables, image: own(image)


@lru_cache(maxsize=8)
def _attacker(*arguments) -> Attacker:
    return Attacker(*arguments)


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
