"""How faithful attributions are: remove and retrain (ROAR), keep and retrain (KAR)."""

from robgrad.faithfulness.occlusion import Occlusion, fill_of, mean_colour, occlude, rank_maps
from robgrad.faithfulness.retraining import (
    Examples,
    Retraining,
    RetrainingSizes,
    evaluate,
    grid,
    initial_states,
    kar,
    numbers_of,
    retraining_step,
    roar,
)
from robgrad.faithfulness.scores import KAR, PERCENTILES, RANDOM, ROAR, Curve, areas, bounds, curve, score

__all__ = [
    "KAR",
    "PERCENTILES",
    "RANDOM",
    "ROAR",
    "Curve",
    "Examples",
    "Occlusion",
    "Retraining",
    "RetrainingSizes",
    "areas",
    "bounds",
    "curve",
    "evaluate",
    "fill_of",
    "grid",
    "initial_states",
    "kar",
    "mean_colour",
    "numbers_of",
    "occlude",
    "rank_maps",
    "retraining_step",
    "roar",
    "score",
]
