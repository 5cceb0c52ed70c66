"""What an evaluation by AutoAttack says, image by image."""

from typing import Any, NamedTuple

import numpy as np

from robgrad import intervals
from robgrad.plots import axes_of

# What `broken_by` says of images that the network gets wrong without an attack.
WRONG = "wrong from the start"


class Evaluation(NamedTuple):
    """Robust accuracy image by image.

    Attributes:
      robust: `[N]` bool, right from the start and broken by no attack.
      broken_by: name of the attack that broke each image, `""` where none did; `WRONG` where none was needed.
      adversarial: `[N, H, W, C]`, the adversarial image where there is one, else the image itself.
      distance: `[N]`, its distance in the norm, in double precision; NaN where there is none.
      standing: how many images were still right after each attack, by name, `clean` first.
      notes: what speaks against the numbers, a line each; empty where nothing was noticed.
    """

    robust: np.ndarray
    broken_by: np.ndarray
    adversarial: np.ndarray
    distance: np.ndarray
    standing: dict[str, int]
    notes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Share of robust images."""
        return float(self.robust.mean())

    def by_class(self, labels: Any) -> list[dict[str, Any]]:
        """A row for each class of the images' labels `[N]`: how many images, clean and robust accuracy.

        `low` and `high` are the bounds of robust accuracy's 95% interval by Wilson, over the images.

        Raises:
          ValueError: if there is not a label for each image.
        """
        labels = np.asarray(labels).reshape(-1)
        if len(labels) != len(self.robust):
            raise ValueError(f"expected a label for each of {len(self.robust)} images, got {len(labels)}")
        rows, clean = [], self.broken_by != WRONG
        for label in np.unique(labels):
            own = self.robust[labels == label]
            _, low, high = intervals.of_share(own[None])
            row = {"class": int(label), "images": len(own), "clean_accuracy": float(clean[labels == label].mean())}
            rows.append(row | {"robust_accuracy": float(own.mean()), "low": low, "high": high})
        return rows

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each attack: its name, how many images it broke, and the accuracy after it."""
        before, rows, count = len(self.robust), [], len(self.robust)
        for name, standing in self.standing.items():
            rows.append({"attack": name, "broken": before - standing, "accuracy": standing / count})
            before = standing
        return rows

    def plot(self, axes: Any = None) -> Any:
        """Draws accuracy after each attack as bars; returns matplotlib's axes."""
        axes, rows = axes_of(axes), self.to_rows()
        axes.barh([row["attack"] for row in rows], [row["accuracy"] for row in rows])
        axes.invert_yaxis()
        axes.set(xlabel="accuracy after the attack", xlim=(0, 1))
        return axes
