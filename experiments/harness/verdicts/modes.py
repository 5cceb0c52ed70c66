"""Modes of the rescaled distances beside the published ones, which are read off figures."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.harness.pages.tables import Row
from experiments.harness.settings.presets import Preset, presets_of
from experiments.harness.verdicts import claims
from robgrad import intervals, manifolds
from robgrad.manifolds import densities

# Modes of the rescaled distances, read off the figures (cross-entropy analysis, l2 networks trained on
# cross-entropy): test data, standard, and the networks of growing epsilon.
PUBLISHED_MODES = {
    "mnist": (0.33, 0.63, 0.60, 0.50, 0.42),
    "fashion_mnist": (0.20, 0.62, 0.59, 0.53, 0.43),
    "cifar10": (0.07, 0.115, 0.112, 0.105, 0.094),
}


def rescaled(distances: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Distances in units where the clean test data's own span [0, 1]; as they are where those are all alike."""
    return distances if on_manifold(clean) or np.ptp(clean) == 0 else (distances - clean.min()) / np.ptp(clean)


def on_manifold(clean: np.ndarray) -> bool:
    """Whether the clean test data lie on the manifold but for rounding, as on an exact one."""
    return bool(clean.max() < 1e-3)


def claim(config: Any, clean: np.ndarray, kept: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """That the modes are the published ones, where the radii are the paper's.

    Args:
      config: of section 2.1.
      clean: distances of test images `[seed, image]`.
      kept: those of successfully attacked images by kind of network, from the standard one to the strongest.
    """
    if config.dataset not in PUBLISHED_MODES or config.radii["l2"] != _paper(config)["radii"]["l2"]:
        return
    modes, text = PUBLISHED_MODES[config.dataset], "mode of the rescaled distance"
    for (name, values), theirs in zip({"test data": clean, **kept}.items(), modes, strict=True):
        over = claims.Over(len(values), f"{values.shape[1]} images")
        one = claims.Claim("2.1", text, f"{name}; xent analysis", f"{theirs:g}", over)
        if (np.isfinite(values).sum(axis=1) < claims.FEWEST).any():
            yield claims.untested(one)
            continue
        # In units of the clean images' own range, which is not drawn anew: a bootstrap of extremes would miss it.
        units = np.stack([rescaled(each, own) for each, own in zip(values, clean, strict=True)])
        ours, low, high = map(float, intervals.of_seeds_and_rows(units, _mode))
        # The published figure is of a sample as large as ours, and errs as much.
        least, most = (ours + 2**0.5 * (bound - ours) for bound in (low, high))
        judged = claims.number(theirs, modes, least, most, is_paper_size(config))
        yield claims.row(one, f"{ours:.3g}", low, high, claims.of_few(judged, config.network_seeds))


def _mode(values: np.ndarray) -> np.ndarray:
    """The mode of `[image, ...]` over images, of what is finite."""
    columns = np.moveaxis(values, 0, -1).reshape(-1, len(values))
    return np.reshape([densities.mode(column[np.isfinite(column)]) for column in columns], values.shape[1:])


def _paper(config: Any) -> Preset:
    """The paper's settings for the data set; none where it has none."""
    return presets_of("manifold_distance")["paper"].get(config.dataset, {})


def is_paper_size(config: Any) -> bool:
    """Whether a run has the paper's numbers throughout, whatever its seed, groups of networks and quirks."""
    paper = _paper(config)
    if not paper:
        return False
    free = {"dataset", "preset", "seed", "matmul_precision", "chunk", "norms", "train_losses", "analysis_losses"}
    free |= {"robust_epsilon", "shuffle", "zero_mask", "sampled_projection", "network_seeds", "radii", "manifold"}
    # Of manifolds the paper has the VAE-GAN alone.
    papers = {*manifolds.KINDS["vae-gan"].settings}
    free |= {name for kind in manifolds.KINDS.values() for name in kind.settings} - papers
    fields = [field for field in dataclasses.fields(config) if field.name not in free]
    same_radii = config.radii["l2"] == paper["radii"]["l2"]
    return same_radii and all(getattr(config, field.name) == paper.get(field.name, field.default) for field in fields)
