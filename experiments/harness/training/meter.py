"""What the stages of a run would take: a few steps of each, in place of carrying them out."""

import math
import sys
import time
from collections.abc import Callable, Collection, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.pages.tables import Row
from experiments.harness.settings.options import Options
from robgrad import stacking, training

# Seconds that a stage is tried for, once it is compiled.
ENOUGH = 2.0
COLUMNS = ("dataset", "stage", "networks", "retrainings", "steps", "ms_per_step", "compile_seconds", "minutes")


class Cost(NamedTuple):
    """Seconds of a step of one network, and of compiling the program of its loop."""

    step: float
    compilation: float


class Meter:
    """Takes down what the stages of a run would take.

    A run that has a meter goes through its experiment's `measure` as any other does. Its stages take a few steps, or a
    few examples of one network, and go on with what these give, which nobody keeps.

    Attributes:
      rows: a row of `COLUMNS` for each kind of stage, by its title.
      made: the networks and manifolds that the run would train, by all that they depend on.
    """

    def __init__(self, dataset: str, given: Collection[Hashable] = (), costs: dict[Hashable, Cost] | None = None):
        """Starts without rows.

        Args:
          dataset: its name, for the rows.
          given: what the run would find trained.
          costs: what stages of other runs took, which this one adds its own to.
        """
        self.rows: dict[str, Row] = {}
        self.made: set[Hashable] = set()
        self._dataset, self._given, self._costs = dataset, given, {} if costs is None else costs
        self._names: dict[str, set[str]] = {}
        self._found: dict[tuple[str, int], tuple[Any, float]] = {}
        self._steps: set[Any] = set()

    def begins(self, *trained: Hashable) -> bool:
        """Whether the run would train a network or a manifold, by all that it depends on, and not find it trained."""
        if trained in self._given:
            return False
        self.made.add(trained)
        return True

    def trained(self, plan: Any, examples: Any, options: Options) -> training.TrainState:
        """The states of a `stages.Plan` after a few steps, their counter at its end.

        Of stages of one title and size the first is tried, and the others are said to take as long a network.
        """
        title, count, states = plan.title or plan.name, len(plan.names), plan.states
        end = plan.epochs * (stacking.size(examples) // plan.batch_size)
        steps = end - int(np.max(states.step))
        kind = title, plan.intensity, plan.batch_size, stacking.size(examples)
        if kind not in self._costs:
            cost, states = cost_of(plan, examples, options)
            self._costs[kind] = cost._replace(step=cost.step / count)
        step, compilation = self._costs[kind]
        row = self.add(title, steps * step * count, 0.0 if plan.step in self._steps else compilation)
        row |= {"steps": steps, "ms_per_step": 1000 * step}
        self._steps.add(plan.step)
        if plan.retrains:
            row["retrainings"] = (row["retrainings"] or 0) + count
        else:
            names = self._names.setdefault(title, set())
            names |= {*plan.names}
            row["networks"] = row["trained"] = len(names)
        return states._replace(step=jnp.full_like(states.step, end))

    def retrained(self, title: str, count: int) -> bool:
        """Whether a stage of retrainings is known; so many more are added then."""
        row = self.rows.get(title)
        if row is None:
            return False
        row["retrainings"] += count
        row["minutes"] += count * row["steps"] * row["ms_per_step"] / 60_000
        return True

    def few(self, title: str, work: Callable[[Any], Any], examples: Any, chunk: int, networks: int = 1) -> Any:
        """What some work of one network gives for a chunk of the examples, when so many networks do it for all.

        Work of one title is done once.
        """
        count = stacking.size(examples)
        chunk = min(chunk, count)
        times = networks * count / chunk
        if (title, chunk) in self._found:
            found, seconds = self._found[title, chunk]
            self.add(title, seconds * times)
            return found
        some = jax.tree.map(lambda leaf: leaf[:chunk], examples)
        self._found[title, chunk] = self.timed(title, lambda: work(some), times, networks)
        return self._found[title, chunk][0]

    def timed(self, title: str, work: Callable[[], Any], times: float, networks: int) -> tuple[Any, float]:
        """What some work of so many networks gives, that is done so many times, and its seconds once compiled."""
        found, seconds, compilation = warm_and_cold(work)
        row = self.add(title, seconds * times, compilation)
        row["networks"] = max(row["networks"] or 0, networks)
        return found, seconds

    def add(self, title: str, seconds: float, compilation: float = 0.0) -> Row:
        """Adds to the row of a title, and returns it."""
        if title not in self.rows:
            print(f"measured {self._dataset}, {title}", file=sys.stderr)
            self.rows[title] = dict.fromkeys(COLUMNS) | {"dataset": self._dataset, "stage": title}
        row = self.rows[title]
        row["minutes"] = (row["minutes"] or 0.0) + (seconds + compilation) / 60
        row["compile_seconds"] = (row["compile_seconds"] or 0.0) + compilation
        return row


def cost_of(plan: Any, examples: Any, options: Options, seconds: float = ENOUGH) -> tuple[Cost, training.TrainState]:
    """Takes a few steps of a `stages.Plan` in the program that the run itself will use; their cost is the stack's."""
    begun = int(np.max(plan.states.step))
    marks: list[tuple[float, int]] = [(time.perf_counter(), begun)]
    stopped: list[training.TrainState] = []
    given = plan.options(options) | {
        "stop": lambda: len(marks) > 2 and marks[-1][0] - marks[1][0] > seconds,
        "progress": lambda done: marks.append((time.perf_counter(), done.step)),
        "checkpoints": training.Checkpoints(stopped.append, math.inf),
    }
    try:
        states = training.fit(plan.step, plan.states, plan.numbers, examples, **given)
    except training.StoppedError:
        states = stopped[-1]
    (start, _), (first, one), (last, steps) = marks[0], marks[1], marks[-1]
    step = (last - first) / (steps - one) if steps > one else (first - start) / (one - begun)
    return Cost(step, max(0.0, first - start - (one - begun) * step)), states


def warm_and_cold(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call gives, its seconds once compiled, and what the first took beyond them."""
    marks, found = [time.perf_counter()], None
    for _ in range(3):
        found = jax.block_until_ready(function())
        marks.append(time.perf_counter())
    cold, *warm = np.diff(marks)
    return found, min(warm), max(0.0, cold - min(warm))
