"""Estimates of the manifold against the exact one: fractions of gradients, and tangent spaces."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from experiments.harness.measurement.alignment import AnalysedConfig, Arrays, fields_of
from experiments.harness.pages.tables import Row, interval_of, with_interval
from experiments.harness.training.specs import Spec, kinds_of
from experiments.harness.verdicts import claims
from robgrad import intervals, manifolds

EXACT = "exact"


def estimates_of(config: AnalysedConfig) -> list[str]:
    """The manifolds that are estimates."""
    return [name for name in config.manifold if name not in (EXACT, "all")]


def row_of(config: AnalysedConfig, arrays: Arrays, specs: Sequence[Spec], name: str) -> Row:
    """How an estimate's fractions and tangent spaces compare with the true ones."""
    by_image, by_network = correlations(config, arrays, specs, name)
    pairs = pairs_of(config, arrays, specs, name)
    bias = intervals.of_seeds_and_rows(
        np.diff(pairs[..., ::-1])[..., 0], lambda some: intervals.mean(np.moveaxis(intervals.mean(some), -1, 0))
    )
    angles = principal_angles(arrays[f"{name}/products"])
    return {
        "estimate": manifolds.KINDS[name].title,
        **with_interval("bias", bias),
        **with_interval("rank_over_images", by_image),
        **with_interval("rank_over_networks", by_network[:3]),
        "rank_over_networks_share": by_network.share,
        "shared": np.mean(np.cos(angles) ** 2),
        "smallest_angle": np.degrees(np.median(angles.min(axis=1))),
        "median_angle": np.degrees(np.median(angles)),
    }


def principal_angles(products: np.ndarray) -> np.ndarray:
    """Angles between two subspaces (Björck and Golub, 1973) from products `[N, k, z]` of their orthonormal bases.

    `[N, z]`, from small to large; a right angle for each dimension of the second that the first is short of.
    """
    cosines = np.linalg.svd(products.astype(np.float64), compute_uv=False)
    missing = products.shape[2] - cosines.shape[1]
    return np.arccos(np.clip(np.pad(cosines, ((0, 0), (0, max(missing, 0)))), 0, 1))


def pairs_of(config: AnalysedConfig, arrays: Arrays, specs: Sequence[Spec], name: str) -> np.ndarray:
    """An estimate's fractions and the true ones, `[seed, image, kind of network, 2]`."""
    loss, places = config.analysis_losses[0], np.array([*kinds_of(specs).values()]).T
    both = (fields_of(arrays, loss, one)["tangent_fraction"][places] for one in (name, EXACT))
    return np.stack([*both], axis=-1).swapaxes(1, 2)


def rank_correlation(pairs: np.ndarray) -> np.ndarray:
    """Spearman's correlation of `[n, ..., 2]` over the first axis, of pairs that are finite.

    NaN where one side is constant or fewer than two are finite.
    """
    kept = np.where(np.isfinite(pairs).all(-1, keepdims=True), pairs, np.nan)
    ranks = stats.rankdata(kept, axis=0, nan_policy="omit")
    ranks = np.nan_to_num(ranks - intervals.mean(ranks))
    squares = (ranks**2).sum(0).prod(-1)
    out = np.full(squares.shape, np.nan)
    return np.divide(ranks.prod(-1).sum(0), np.sqrt(squares), out=out, where=squares > 0)


def correlations(
    config: AnalysedConfig, arrays: Arrays, specs: Sequence[Spec], name: str
) -> tuple[tuple[float, ...], intervals.Correlation]:
    """An estimate's rank correlations with the truth, each with its interval.

    Over images within a network, averaged over networks; over kinds of networks of one seed; both judged by seeds.
    """
    pairs = pairs_of(config, arrays, specs, name)

    def within(some: np.ndarray) -> np.ndarray:
        return intervals.mean(np.moveaxis(rank_correlation(some), -1, 0))

    means = np.nanmean(pairs, axis=1)
    each = [float(rank_correlation(one)) for one in means]
    alike = intervals.likeness(means[..., 1], means[..., 0], rank=True)
    by_network = intervals.of_correlations(each, means.shape[1], True, alike)
    return tuple(map(float, intervals.of_seeds_and_rows(pairs, within))), by_network


def claim(config: AnalysedConfig, rows: Sequence[Row], images: int, kinds: int) -> Iterator[Row]:
    """Of rows of estimates, by so many images and kinds of network: that they rank both as the truth does."""
    for row in rows:
        for what, over, number in (
            ("images of one network", f"{images} images", interval_of(row, "rank_over_images")),
            ("networks", f"{kinds} kinds of network", interval_of(row, "rank_over_networks")),
        ):
            text = f"an estimate of the manifold ranks {what} as the truth does"
            one = claims.Claim("2.1", text, row["estimate"], "-", claims.Over(config.network_seeds, over))
            steps = claims.Steps(*number[1:])
            if what == "networks":
                found = intervals.Correlation(*number, row["rank_over_networks_share"])
                steps = claims.Steps.of_correlation(found)
            ours = f"rank correlation {number[0]:.3g}"
            yield claims.row(one, ours, *number[1:], steps) if np.isfinite(number[1]) else claims.untested(one)
