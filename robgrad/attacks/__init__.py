"""Attacks on one example and what they are made of: losses, norms, projected gradient ascent."""

from robgrad.attacks.losses import LOSSES, Loss, cross_entropy, cw_margin, kl_divergence
from robgrad.attacks.norms import L2, LINF, NORMS, Norm, length, norm_named
from robgrad.attacks.pgd import ATTACKS, Attack, no_attack, pgd, pgd_restarts

__all__ = [
    "ATTACKS",
    "L2",
    "LINF",
    "LOSSES",
    "NORMS",
    "Attack",
    "Loss",
    "Norm",
    "cross_entropy",
    "cw_margin",
    "kl_divergence",
    "length",
    "no_attack",
    "norm_named",
    "pgd",
    "pgd_restarts",
]
