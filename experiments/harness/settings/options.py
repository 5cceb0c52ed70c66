"""How a run is carried out, as opposed to what it computes: one frozen value, made in `main` and passed on."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
_INTERVAL = re.compile(r"(\d+)([ms]?)")


@dataclass(frozen=True)
class Options:
    """What may differ between two runs that give the same numbers.

    Attributes:
      checkpoint_every: how often training saves, as minutes (`10m`), seconds (`90s`) or steps (`500`).
      tensorboard: whether training curves are written as event files into the run's directory.
      shard_data: whether training data are split over devices instead of copied to each.
      stack_size: retrainings in one stack; as many as memory allows where None.
      networks_from: another run, trained alike, whose networks and manifold are used.
    """

    checkpoint_every: str = "10m"
    tensorboard: bool = False
    shard_data: bool = False
    stack_size: int | None = None
    networks_from: Path | None = None

    @property
    def interval(self) -> tuple[float, int]:
        """`checkpoint_every` as `minutes` and `steps` of `training.Checkpoints`."""
        match = _INTERVAL.fullmatch(self.checkpoint_every)
        assert match is not None, self.checkpoint_every
        count, unit = int(match[1]), match[2]
        return (math.inf, count) if not unit else (count / (1 if unit == "m" else 60), 0)


def is_interval(text: str) -> bool:
    """Whether a text is a checkpoint interval."""
    match = _INTERVAL.fullmatch(text)
    return match is not None and int(match[1]) > 0


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_flags(jaxlib: str, given: str, known: Mapping[str, tuple[str, ...]]) -> str:
    """`XLA_FLAGS` with a host device a core and a release's fast CPU flags, never against what is given."""
    wanted = (f"--xla_force_host_platform_device_count={cores()}", *known.get(jaxlib, ()))
    missing = [flag for flag in wanted if flag.split("=")[0] not in given]
    return " ".join([given, *missing]).strip()
