"""Which attacks AutoAttack is made of (Croce and Hein, 2020), by version."""

from typing import Any, NamedTuple

from robgrad.attacks.apgd import apgd
from robgrad.attacks.fab import fab
from robgrad.attacks.losses import cross_entropy, cw_margin, dlr, targeted_dlr, targeted_margin, undefined
from robgrad.attacks.norms import Norm
from robgrad.attacks.search import Search
from robgrad.attacks.square import square
from robgrad.data import PIXEL_RANGE
from robgrad.data.checks import Range

VERSIONS = ("standard", "plus", "rand", "short")


class Part(NamedTuple):
    """One attack of the ensemble: its name, its search, the rank of the class it aims at, and its number."""

    name: str
    search: Search
    rank: int = 0
    restart: int = 0


def ensemble(
    version: str, norm: Norm | str, classes: int, pixel_range: Range = PIXEL_RANGE, targeted: bool = False
) -> tuple[list[Part], list[str]]:
    """The attacks of a version, in their order, and what had to be left out or replaced for so few classes.

    `standard`: APGD on the cross-entropy, targeted APGD on the DLR loss and targeted FAB, each at the 9 next classes,
    of 100 steps, Square of 5,000 queries. `plus`: APGD on both losses, five times each, FAB, Square, and the targeted
    ones. `rand`, for networks that are random: APGD on both losses, each gradient the mean of 20. `short`, for a first
    look and no yardstick: APGD of 50 steps on the cross-entropy, and targeted at the 3 next classes. Where `targeted`,
    labels are goals `(label, target)`: every part aims at the target alone, once where it would aim at several classes.

    Raises:
      ValueError: for another version, or one class.
    """
    if version not in VERSIONS:
        raise ValueError(f"expected a version of {', '.join(VERSIONS)}, got {version!r}")
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
    if version == "rand":
        options["samples"] = 20
        losses = {"apgd-ce": cross_entropy, "apgd-dlr": untargeted}
        return [Part(name, apgd(norm, loss, **options)) for name, loss in losses.items()], notes
    if version == "short":
        quick = apgd(norm, cross_entropy, 50, **options)
        aimed = apgd(norm, towards, 50, targeted=True, **options)
        return [Part("apgd-ce", quick), *(Part("apgd-t", aimed, rank) for rank in range(min(most, 3)))], notes
    ranks = range(min(most, 9))
    aimed = apgd(norm, towards, targeted=True, **options)
    near = fab(norm, targeted=True, **options)
    by_target = [Part("apgd-t", aimed, rank) for rank in ranks], [Part("fab-t", near, rank) for rank in ranks]
    last = Part("square", square(norm, **options))
    first = apgd(norm, cross_entropy, **options)
    if version == "standard":
        return [Part("apgd-ce", first), *by_target[0], *by_target[1], last], notes
    second, nearest = apgd(norm, untargeted, **options), fab(norm, **options)
    several = {"apgd-ce": first, "apgd-dlr": second}
    again = [Part(name, one, restart=turn) for name, one in several.items() for turn in range(5)]
    # FAB starts at the image, so that a restart would be the same again.
    free = [] if targeted else [Part("fab", nearest)]
    return [*again, *free, last, *by_target[0], *by_target[1]], notes
