"""The paper's densities of distances, and where they are highest."""

import math
from collections.abc import Callable

import numpy as np

BANDWIDTH_FACTOR = 0.25


def density(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """The paper's density of distances: a Gaussian kernel of bandwidth factor 0.25; None below two values."""
    # Imported where needed: scipy.stats takes longer than all of robgrad.
    from scipy.stats import gaussian_kde

    return gaussian_kde(values, BANDWIDTH_FACTOR) if len(values) > 1 and np.ptp(values) > 0 else None


def mode(values: np.ndarray) -> float:
    """Where `density` of values `[N]` is highest, to a thousandth of their range; NaN below two values.

    Raises:
      ValueError: if a value is not finite.
    """
    values = _finite(values)
    if not _vary(values):
        return math.nan
    centres, smooth = _counted(values)
    return float(centres[np.argmax(smooth)])


def peaks(values: np.ndarray, share: float = 0.9) -> int:
    """How many peaks the density has that are at least `share` of the highest; where several, the mode is unstable.

    Raises:
      ValueError: if a value is not finite.
    """
    values = _finite(values)
    if not _vary(values):
        return 0
    from scipy.signal import find_peaks

    # A peak at an end counts: beyond the values there is nothing.
    smooth = np.pad(_counted(values)[1], 1, constant_values=-np.inf)
    return len(find_peaks(smooth, height=share * smooth.max())[0])


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"expected finite values [N], got {'NaN or infinity' if values.ndim == 1 else values.shape}")
    return values


def _vary(values: np.ndarray) -> bool:
    """Whether there are two values or more, which differ by more than rounding."""
    return len(values) > 1 and np.ptp(values) > 1e-12 * np.abs(values).max()


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The density, not scaled, at 1,000 places: counted into bins and smoothed, so that resampling costs seconds."""
    from scipy.ndimage import gaussian_filter1d

    counts, edges = np.histogram(values, 1000)
    bins = BANDWIDTH_FACTOR * np.std(values, ddof=1) / (edges[1] - edges[0])
    return (edges[:-1] + edges[1:]) / 2, gaussian_filter1d(counts.astype(float), bins, mode="constant")
