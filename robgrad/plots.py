"""Axes for results that plot themselves; matplotlib is asked for only there."""

from typing import Any


def axes_of(axes: Any = None) -> Any:
    """The axes given, or new ones.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot() needs matplotlib: pip install matplotlib, or robgrad's extra 'experiments'"
        ) from error
    return plt.subplots(layout="constrained")[1]
