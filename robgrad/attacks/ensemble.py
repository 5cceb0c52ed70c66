"""Which attacks AutoAttack is made of (Croce and Hein, 2020), by version."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from robgrad.attacks.apgd import apgd
from robgrad.attacks.carlini_wagner import carlini_wagner
from robgrad.attacks.deepfool import deepfool
from robgrad.attacks.fab import fab
from robgrad.attacks.losses import cross_entropy, cw_margin, dlr, targeted_dlr, targeted_margin, undefined
from robgrad.attacks.norms import L1, L2, Norm, ended, norm_named
from robgrad.attacks.pgd import Attack
from robgrad.attacks.search import Goal, Search
from robgrad.attacks.square import square
from robgrad.data import PIXEL_RANGE
from robgrad.data.checks import Range

# The attacks that a choice of one's own may name.
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "deepfool", "carlini-wagner")
Version = str | Sequence[str | Attack]
VERSIONS = ("standard", "plus", "rand", "short")


class Part(NamedTuple):
    """One attack of the ensemble: its name, its search, the rank of the class it aims at, and its number."""

    name: str
    search: Search
    rank: int = 0
    restart: int = 0


def ensemble(
    version: Version, norm: Norm | str, classes: int, pixel_range: Range = PIXEL_RANGE, targeted: bool = False
) -> tuple[list[Part], list[str]]:
    """The attacks of a version, in their order, and what had to be left out or replaced for so few classes.

    `standard`: APGD on the cross-entropy, targeted APGD on the DLR loss and targeted FAB, each at the 9 next classes,
    of 100 steps, Square of 5,000 queries. `plus`: APGD on both losses, five times each, FAB, Square, and the targeted
    ones. `rand`, for networks that are random: APGD on both losses, each gradient the mean of 20. `short`, for a first
    look and no yardstick: APGD of 50 steps on the cross-entropy, and targeted at the 3 next classes. Where `targeted`,
    labels are goals `(label, target)`: every part aims at the target alone, once where it would aim at several classes.
    A sequence is one's own choice: names of `PARTS`, as in `standard`, and attacks, `(key, logits_fn, image, label,
    epsilon, step_size)` to an image, which are called `own`, `own-2` and so on, with a quarter of epsilon as the step.
    In l1 the standard version is its authors': APGD starts five times on the cross-entropy, and aims at the 5 next
    classes alone.

    Raises:
      ValueError: for another version, or one class.
    """
    if isinstance(version, str) and version not in VERSIONS:
        raise ValueError(
            f"expected a version of {', '.join(VERSIONS)}, or some of {', '.join(PARTS)} and attacks of your own, got "
            f"{version!r}"
        )
    if classes < 2:
        raise ValueError(f"expected at least 2 classes, got {classes}")
    notes = []
    untargeted, towards = dlr, targeted_dlr
    if classes < (4 if targeted else 3):
        untargeted = cw_margin
        notes.append(undefined("dlr", 4 if targeted else 3, classes))
    if classes < 4:
        towards = targeted_margin
        notes.append(undefined("targeted_dlr", 4, classes))
    most = 1 if targeted else classes - 1
    options: dict[str, Any] = {"pixel_range": pixel_range}
    if not isinstance(version, str):
        by_name = {
            "apgd-ce": lambda: apgd(norm, cross_entropy, **options),
            "apgd-dlr": lambda: apgd(norm, untargeted, **options),
            "apgd-t": lambda: apgd(norm, towards, targeted=True, **options),
            "fab": lambda: fab(norm, **options),
            "fab-t": lambda: fab(norm, targeted=True, **options),
            "square": lambda: square(norm, **options),
            "deepfool": lambda: deepfool(norm, **options),
            "carlini-wagner": lambda: _of_l2(carlini_wagner(**options), norm),
        }
        return _chosen(tuple(version), by_name, norm, pixel_range, min(most, 9)), notes
    if version == "rand":
        options["samples"] = 20
        losses = {"apgd-ce": cross_entropy, "apgd-dlr": untargeted}
        return [Part(name, apgd(norm, loss, **options)) for name, loss in losses.items()], notes
    if version == "short":
        quick = apgd(norm, cross_entropy, 50, **options)
        aimed = apgd(norm, towards, 50, targeted=True, **options)
        return [Part("apgd-ce", quick), *(Part("apgd-t", aimed, rank) for rank in range(min(most, 3)))], notes
    sparse = norm_named(norm) is L1
    ranks, starts = range(min(most, 9)), 5 if version == "plus" or sparse else 1
    aimed = apgd(norm, towards, targeted=True, **options)
    near = fab(norm, targeted=True, **options)
    by_target = (
        [Part("apgd-t", aimed, rank) for rank in ranks[: 5 if sparse else 9]],
        [Part("fab-t", near, rank) for rank in ranks],
    )
    last = Part("square", square(norm, **options))
    first = apgd(norm, cross_entropy, **options)
    if version == "standard":
        begun = [Part("apgd-ce", first, restart=turn) for turn in range(starts)]
        return [*begun, *by_target[0], *by_target[1], last], notes
    second, nearest = apgd(norm, untargeted, **options), fab(norm, **options)
    several = {"apgd-ce": first, "apgd-dlr": second}
    again = [Part(name, one, restart=turn) for name, one in several.items() for turn in range(starts)]
    # FAB starts at the image, so that a restart would be the same again.
    free = [] if targeted else [Part("fab", nearest)]
    return [*again, *free, last, *by_target[0], *by_target[1]], notes


def _of_l2(search: Search, norm: Norm | str) -> Search:
    """A search that is one of l2 alone.

    Raises:
      ValueError: if another norm is asked for.
    """
    if norm_named(norm) is not L2:
        raise ValueError("expected the norm l2 for carlini-wagner, whose distance is that; leave it out")
    return search


def _chosen(
    version: tuple[str | Attack, ...],
    by_name: Mapping[str, Callable[[], Search]],
    norm: Norm | str,
    pixel_range: Range,
    ranks: int,
) -> list[Part]:
    """The parts that a sequence of names and attacks stands for."""
    parts: list[Part] = []
    own = 0
    for one in version:
        if isinstance(one, str):
            if one not in by_name:
                raise ValueError(f"expected attacks of {', '.join(by_name)}, or functions, got {one!r}")
            found = by_name[one]()
            parts += [Part(one, found, rank) for rank in range(ranks if one.endswith("-t") else 1)]
        elif callable(one):
            own += 1
            parts.append(Part("own" if own == 1 else f"own-{own}", as_search(one, norm, pixel_range)))
        else:
            raise ValueError(f"expected attacks of {', '.join(by_name)}, or functions, got {one!r}")
    names = [one for one in version if isinstance(one, str)]
    if not parts or len({*names}) < len(names):
        raise ValueError(f"expected one attack or more, each once, got {list(version)}")
    return parts


def as_search(attack: Attack, norm: Norm | str, pixel_range: Range) -> Search:
    """An attack as a search of one step; its step size is a quarter of epsilon, its end is brought into the ball."""
    norm = norm_named(norm)

    def start(key: Any, goal: Goal) -> Any:
        return key, goal.image, jnp.array(False)

    def step(goal: Goal, state: Any) -> Any:
        key, image, _ = state
        point = attack(key, goal.logits_fn, image, goal.label, goal.epsilon, goal.epsilon / 4)
        shape, dtype = getattr(point, "shape", None), getattr(point, "dtype", None)
        if shape != image.shape or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            got = type(point).__name__ if shape is None else f"{dtype} of shape {list(shape)}"
            raise ValueError(f"expected an attack to a floating-point image {list(image.shape)}, got {got}")
        point = point.astype(image.dtype)
        point = ended(norm, image, point, goal.epsilon, pixel_range)
        return key, point, goal.reached(goal.logits_fn(point))

    def end(state: Any) -> Any:
        return state[1], state[2]

    return Search(start, step, 1, end, norm, pixel_range)
