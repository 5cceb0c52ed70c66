"""Attacks by name, for flags: builders `(norm, loss, steps) -> Attack`.

To add an attack is to write such a builder, in a module of its own, and name it here: the contract test and the
experiments' flags read that.
"""

from collections.abc import Callable
from functools import partial

from robgrad.attacks.apgd import apgd
from robgrad.attacks.losses import Loss
from robgrad.attacks.norms import Norm
from robgrad.attacks.pgd import Attack, pgd, pgd_restarts
from robgrad.attacks.search import as_attack


def _apgd(norm: Norm | str, loss: Loss, steps: int) -> Attack:
    return as_attack(apgd(norm, loss, steps))


ATTACKS: dict[str, Callable[..., Attack]] = {
    "pgd": pgd,
    "pgd-random-start": partial(pgd, random_start=True),
    "pgd-restarts": pgd_restarts,
    "apgd": _apgd,
}
