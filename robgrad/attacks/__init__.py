"""Attacks on one example and what they are made of; AutoAttack, the yardstick of robust accuracy.

`pgd` is what networks are trained against; `robust_accuracy` is the one call that says how robust a network is.
"""

from robgrad.attacks.apgd import apgd
from robgrad.attacks.auto_attack import auto_attack, robust_accuracy
from robgrad.attacks.carlini_wagner import carlini_wagner
from robgrad.attacks.deepfool import deepfool
from robgrad.attacks.ensemble import VERSIONS, ensemble
from robgrad.attacks.evaluation import WRONG, Evaluation
from robgrad.attacks.fab import fab
from robgrad.attacks.losses import (
    LEAST_CLASSES,
    LOSSES,
    Loss,
    cross_entropy,
    cw_margin,
    dlr,
    kl_divergence,
    succeeded,
    targeted_dlr,
    targeted_margin,
)
from robgrad.attacks.named import ATTACKS
from robgrad.attacks.nearest import Nearest, nearest
from robgrad.attacks.norms import L1, L2, LINF, NORMS, Norm, length, norm_named
from robgrad.attacks.pgd import Attack, InBall, no_attack, pgd, pgd_restarts
from robgrad.attacks.search import Goal, Search, as_attack
from robgrad.attacks.square import square

__all__ = [
    "ATTACKS",
    "L1",
    "L2",
    "LEAST_CLASSES",
    "LINF",
    "LOSSES",
    "NORMS",
    "VERSIONS",
    "WRONG",
    "Attack",
    "Evaluation",
    "Goal",
    "InBall",
    "Loss",
    "Nearest",
    "Norm",
    "Search",
    "apgd",
    "as_attack",
    "auto_attack",
    "carlini_wagner",
    "cross_entropy",
    "cw_margin",
    "deepfool",
    "dlr",
    "ensemble",
    "fab",
    "kl_divergence",
    "length",
    "nearest",
    "no_attack",
    "norm_named",
    "pgd",
    "pgd_restarts",
    "robust_accuracy",
    "square",
    "succeeded",
    "targeted_dlr",
    "targeted_margin",
]
