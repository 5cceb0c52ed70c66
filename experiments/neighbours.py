r"""The neighbours: three later works on the paper's question, on the same axes, and one page.

Second-order training among other ways to train (`ways_to_train`), refinement guided by LIME (`refinement`), and
explanations against an expert's regions (`expert_regions`), each on the set that it is made for.

    python -m experiments.neighbours                      # 12 minutes on 2 cores
    python -m experiments.neighbours --dry_run            # what it would take here
"""

from pathlib import Path

from experiments import reproduce
from experiments.harness import costs, experiment, launch
from experiments.harness.settings.flags import Flags

NAME, TITLE = "neighbours", "The neighbours: three works on the same question"


def work(given: Flags) -> None:
    """Runs all three."""
    chosen = [one for one in experiment.every() if one.neighbour]
    root = Path(given.values.workdir or f"runs/{NAME}-{given.values.preset}").expanduser()
    reproduce.run_all(given, NAME, TITLE, chosen, root)


def program_flags() -> Flags:
    """Their flags together."""
    chosen = [one for one in experiment.every() if one.neighbour]
    given = Flags(__doc__ or "", [one.config for one in chosen], chosen[0].presets)
    given.add("run", "bool", "dry_run", False, costs.DRY_RUN)
    return given


if __name__ == "__main__":
    launch.program(work, program_flags())
