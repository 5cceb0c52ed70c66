"""How often the rule for verdicts is wrong, and how often it tells, in simulated families of groups of networks."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from experiments.harness.pages.tables import Row
from experiments.harness.verdicts import claims
from robgrad import intervals

# Values of seeds, of mean 0 and variance 1: what a training adds to a network's number.
SEEDS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "skewed": lambda generator, shape: (generator.lognormal(sigma=1.0, size=shape) - np.exp(0.5)) / 2.16,
    "heavy-tailed": lambda generator, shape: generator.standard_t(3, size=shape) / 3**0.5,
}
# Trainings, groups of a claim, and networks in the order of each group.
FAMILIES = tuple(itertools.product((3, 5, 10), (1, 8, 24), (2, 5, 25)))
# Steps between neighbouring networks, in deviations of a seed, of families in which every claim is true.
EFFECTS = (1.0, 2.0, 3.0)
# What images bring to all seeds of a network alike, in the same unit.
SHARED = 0.3
WRONG = {
    "seeds": "seeds",
    "groups": "groups",
    "networks": "networks",
    "holds": f"families with a 'holds' ({', '.join(SEEDS)} seeds)",
    "fails": "families with a 'does not hold'",
}
TOLD = {
    "seeds": "seeds",
    "step": "step, in a seed's deviations",
    "told": f"groups that hold ({', '.join(SEEDS)} seeds)",
}


def shares(
    kind: str, seeds: int, groups: int, networks: int, step: float = 0.0, times: int = 600
) -> tuple[float, float, float]:
    """Shares of families with a 'holds', of families with a 'does not hold', and of groups that hold.

    A network's number is the mean of its seeds and of what the images bring to it; groups share the first network, the
    standard one, as in the runs.

    Args:
      kind: of `SEEDS`.
      seeds, groups, networks: of a family.
      step: how far each network lies above the one before it, in deviations of a seed.
      times: families.
    """
    generator = np.random.default_rng(seeds * 100 + groups + networks)
    found = np.zeros(3)
    for _ in range(times):
        values = SEEDS[kind](generator, (seeds, groups, networks)) + step * np.arange(networks)
        values[:, :, 0] = values[:, :1, 0]
        values += SHARED / seeds**0.5 * generator.normal(size=(groups, networks))
        low, high = intervals.of_seeds(np.diff(values, axis=2), 2 * SHARED**2 / seeds)
        said = claims.verdicts([claims.Steps(*bounds) for bounds in zip(low, high, strict=True)], seeds)
        found += claims.HOLDS in said, claims.FAILS in said, said.count(claims.HOLDS) / groups
    holds, fails, told = found / times
    return float(holds), float(fails), float(told)


def rows(times: int) -> Iterator[Row]:
    """Shares by kind of seeds: a row for each family in which nothing is true, and for each step where all is."""
    nothing = [(*family, 0.0) for family in FAMILIES]
    everything = [(seeds, 8, 5, step) for seeds in (3, 5, 10) for step in EFFECTS]
    for seeds, groups, networks, step in nothing + everything:
        found = zip(*(shares(kind, seeds, groups, networks, step, times) for kind in SEEDS), strict=True)
        row: Row = {"seeds": seeds, "groups": groups, "networks": networks, "step": step}
        yield row | {name: list(each) for name, each in zip(("holds", "fails", "told"), found, strict=True)}


def shown(simulated: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows as pages show them: of `WRONG`, where nothing is true, and of `TOLD`, where all is."""

    def percent(row: Row) -> Row:
        said = {name: ", ".join(f"{one:.1%}" for one in of) for name, of in row.items() if isinstance(of, list)}
        return row | said | {"step": f"{row['step']:g}"}

    return [percent(row) for row in simulated if not row["step"]], [percent(row) for row in simulated if row["step"]]
