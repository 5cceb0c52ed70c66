r"""What robgrad costs against what one would use instead, on this machine, as ratios within one run.

    python -m experiments.benchmark                                  # everything, an hour or more on 2 cores
    python -m experiments.benchmark --quick                          # does it run? a few minutes
    python -m experiments.benchmark --suites=attack --networks=digits --peers=eager,foolbox

Each contender is a process of its own, with the threads it likes best; they take turns at equal work, and what they
give must be equal. Suites, for the paper's classifiers (and the one for 8x8 digits):

    loops       two steps in a compiled loop, called from Python, and in a loop over `lax`'s own convolutions
    attack      PGD-10 and PGD-40, l2 and l-inf, of a batch
    train       standard and adversarial training steps
    retrain     a stack of ROAR retrainings, against one after another
    gradients   input gradients of the loss; their alignment with a VAE-GAN's manifold, against vectorised Jacobians
    attributions  Integrated Gradients, DeepLIFT and LRP against Captum, ROAD's imputation against a sparse solver
    robustness  standard AutoAttack of the digits network; of a public one for MNIST, where `--witness` says where it is
    vae_gan     steps of the VAE-GAN
    scale       time, compiling and memory against stack, images, pixels, host devices and processes
    devices     all devices in one process, one device, two processes of half the cores each, XLA's defaults
    data        loading a data set, cold and from its cache
    startup     imports; the digits experiment's share of compiling, with a cold and a warm cache

Peers are PyTorch (eager, channels-last, compiled, as a `torch.func` stack), torchattacks, foolbox (PyTorch and JAX),
ART, Captum and AutoAttack's own code; what is not installed is named and left out. Leaves `results.json`,
`speed.svg` and `scale.svg`.
"""

import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmark import contest, programs, robustness, scale, suites
from experiments.harness import launch
from experiments.harness.pages import figures, tables
from experiments.harness.pages.tables import Row
from experiments.harness.settings.flags import Flags
from robgrad import runs

COLUMNS = (
    *("suite", "network", "task", "variant", "ms", "spread", "per_second", "gflops", "share_of_peak"),
    *("compile_seconds", "memory_mib", "ratio"),
)


class Wanted(NamedTuple):
    """What is to be timed, as the flags say."""

    networks: Sequence[str]
    suites: Sequence[str]
    peers: Sequence[str]
    rounds: int
    quick: bool
    loaded: str
    witness: str
    precision: str


def program_flags() -> Flags:
    """The program's flags."""
    given = Flags(__doc__ or "")
    known = {"networks": tuple(suites.NETWORKS), "suites": suites.SUITES, "peers": tuple(suites.PEERS)}
    texts = {"networks": "Classifiers to time", "suites": "What to time", "peers": "Peers to compare with"}
    for name, values in known.items():
        given.add("run", "list", name, list(values), f"{texts[name]}, of {', '.join(values)}.")
        given.check(name, lambda names, values=values: {*names} <= {*values}, f"some of {', '.join(values)}")
    text = "Timed runs of each, after two to warm up; medians are shown."
    given.add("run", "integer", "rounds", 5, text, lower_bound=1)
    given.add("run", "bool", "quick", False, "Few steps, one repeat: whether the benchmark works, no measurement.")
    text = "Data set of the suite data: 'digits', or a TFDS name in $TFDS_DATA_DIR."
    given.add("run", "string", "loaded", "digits", text)
    text = f"Folder with {robustness.WITNESS_FILE}, a public network's arrays; needs MNIST in $TFDS_DATA_DIR."
    given.add("run", "string", "witness", os.environ.get("ROBGRAD_WITNESS", ""), text)
    return given


def contender(file: Path, program: str) -> contest.Contender:
    """Starts a variant of a file's tasks."""
    module, variant = program.split()
    command = [sys.executable, "-m", f"experiments.benchmark.{module}", str(file), variant]
    given = os.environ["XLA_FLAGS"]
    # Contenders share a GPU, so none may take it whole.
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    alone = variables | {"XLA_FLAGS": scale.with_devices(given, 1)}
    if variant == "plain_xla":
        return contest.Contender([command], variables | {"XLA_FLAGS": ""})
    if variant == "two_processes":
        return contest.Contender([[*command, *one] for one in contest.joined(2)], alone)
    several = variant in ("robgrad", "bfloat16")
    return contest.Contender([command], variables if several else alone)


def compare(chosen: Wanted, suite: str, name: str, peak: float) -> Iterator[Row]:
    """Rows of a suite for a network: contenders started one by one, then taking turns at each task."""
    long = suite == "robustness"
    tasks = {} if long else suites.tasks_of(suite, name, chosen.quick)
    if not tasks and not long:
        return
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "work.npz"
        started: dict[str, contest.Contender] = {}
        seconds: dict[tuple[str, str], list[float]] = {}
        if long:
            count = robustness.write(file, name, chosen.witness, chosen.quick)
            tasks = {"AutoAttack, l-inf": suites.Task((), count, math.nan)}
        for label, program in wanted(chosen, suite).items():
            mine = {task: one for task, one in tasks.items() if not (program == "peers captum" and task == "alignment")}
            if not long:
                suites.write(file, suite, name, mine, chosen.precision)
            try:
                started[label] = contender(file, program)
            except contest.FailedError as error:
                launch.show(f"{suite}, {name}: {label} left out ({error})")
        for _ in range(1 if chosen.quick or long else chosen.rounds):
            for task in tasks:
                for label, one in list(started.items()):
                    if task not in one.values:
                        continue
                    try:
                        seconds.setdefault((task, label), []).append(one.take(task))
                    except (contest.FailedError, BrokenPipeError) as error:
                        launch.show(f"{suite}, {name}: {label} ended ({error})")
                        started.pop(label)
        memory = {label: one.end() for label, one in started.items()}
    if "robgrad" not in started:
        return
    done = [(place, times) for place, times in seconds.items() if place[1] in started]
    for (task, label), times in sorted(done, key=lambda item: list(tasks).index(item[0][0])):
        equal = is_equal(suite, name, task, label, started[label].values[task], started["robgrad"].values[task])
        median, work = statistics.median(times), tasks[task]
        yield {
            **{"suite": suite, "network": name, "task": task, "variant": label, "ms": 1000 * median},
            "spread": f"{1000 * min(times):.3g}..{1000 * max(times):.3g}",
            "per_second": work.images / median,
            "gflops": work.flops / median / 1e9,
            "share_of_peak": work.flops / median / peak,
            "compile_seconds": started[label].compilation[task],
            "memory_mib": memory[label] / 2**20,
            "ratio": median / statistics.median(seconds[task, "robgrad"]),
            "equal_work": equal,
        }


def networks_of(chosen: Wanted, suite: str) -> list[str]:
    """The networks of a suite; AutoAttack's must be trained ones."""
    if suite != "robustness":
        return list(chosen.networks)
    return [*(name for name in chosen.networks if name == "digits"), *(["witness"] if chosen.witness else [])]


def wanted(chosen: Wanted, suite: str) -> dict[str, str]:
    """The variants of a suite, without peers that are not asked for or not installed, which are named once."""
    found = {}
    for label, program in suites.VARIANTS[suite].items():
        variant = program.split()[1]
        peer = variant in suites.PEERS and not label.startswith("robgrad")
        if not peer or (variant in chosen.peers and installed(suites.PEERS[variant], program)):
            found[label] = program
    return found


def installed(peer: str, program: str) -> bool:
    """Whether a peer, and PyTorch where its program needs that, can be imported; says so once where not."""
    needed = [peer, *([] if program.startswith("contenders") else ["torch"])]
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    for module in {*missing} - _missing:
        _missing.add(module)
        launch.show(f"{module}: not installed, what needs it is left out (pip install '.[benchmark]')")
    return not missing


_FLOAT32_PEERS = {
    label
    for suite in suites.VARIANTS.values()
    for label, program in suite.items()
    if program.split()[1] in (*suites.PEERS, "sparse") and "bfloat16" not in label
}
_missing: set[str] = set()


def is_equal(suite: str, network: str, task: str, label: str, values: Sequence[float], ours: Sequence[float]) -> bool:
    """Whether a contender gave what robgrad gave, within noise; says so where not, as its time then means nothing."""
    tolerance = 0.1 if "bfloat16" in label else 0.02
    if np.allclose(values, ours, rtol=tolerance, atol=1e-4):
        return True
    launch.show(f"{suite}, {network}, {task}: {label} gave {np.mean(values):.4g}, robgrad {np.mean(ours):.4g}")
    return False


def peak_flops(chosen: Wanted) -> float:
    """Floating-point operations a second of a large float32 product, the best of a few."""
    side = 512 if chosen.quick else 4096
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "work.npz"
        product = {"product": suites.Task(("product", side), 1, 2 * side**3)}
        suites.write(file, "attack", "digits", product, chosen.precision)
        one = contender(file, "contenders robgrad")
        best = min(one.take("product") for _ in range(5))
        one.end()
    return 2 * side**3 / best


def against_the_best(rows: Sequence[Row]) -> list[Row]:
    """For each task the fastest float32 peer, its time over robgrad's, and the ratio aimed at."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if row["variant"] not in _FLOAT32_PEERS or not row["equal_work"]:
            continue
        place = (row["suite"], row["network"], row["task"])
        if place not in best or row["ratio"] < best[place]["ratio"]:
            best[place] = row
    return [
        {
            **dict(zip(("suite", "network", "task"), place, strict=True)),
            "best_peer": row["variant"],
            "ratio": row["ratio"],
            "target": suites.target(*place),
        }
        for place, row in best.items()
    ]


def work(given: Flags) -> None:
    """Runs the chosen suites, prints their tables as they come and writes them."""
    values = given.values
    names = ("networks", "suites", "peers", "rounds", "quick", "loaded", "witness", "matmul_precision")
    chosen = Wanted(*(getattr(values, name) for name in names))
    workdir, rows = Path(values.workdir or "runs/benchmark").expanduser(), []
    peak = peak_flops(chosen)
    launch.show(f"a large float32 product: {peak / 1e9:.0f} GFLOP/s")
    alone = {
        "scale": partial(scale.points, chosen.rounds, chosen.quick),
        "data": partial(programs.loading, chosen.loaded),
        "startup": partial(programs.startup, chosen.rounds, chosen.quick),
    }
    plan = [
        alone[suite] if suite in alone else partial(compare, chosen, suite, name, peak)
        for suite in chosen.suites
        for name in (["-"] if suite in alone else networks_of(chosen, suite))
    ]
    for function in plan:
        part = list(function())
        if part:
            launch.show(tables.text(part, COLUMNS), "")
        rows += part
        keep(workdir, rows, peak)
    for summary in (against_the_best(rows), scale.growth(rows)):
        if summary:
            launch.show(tables.text(summary, tuple(summary[0])))
    launch.show(f"\nresults: {workdir}")


def keep(workdir: Path, rows: Sequence[Row], peak: float) -> None:
    """Writes what has been measured so far, and the chart."""
    results: dict[str, Any] = {"experiment": "benchmark", "environment": launch.environment(), "peak_flops": peak}
    summary = against_the_best(rows)
    results |= {"rows": tables.plain(rows), "against_the_best": tables.plain(summary)}
    if grown := scale.growth(rows):
        results["growth"] = tables.plain(grown)
        scale.figure(workdir / "scale.svg", [row for row in rows if row["suite"] == "scale"])
    runs.write(workdir / "results.json", json.dumps(results, indent=2, allow_nan=False))
    if summary:
        names = [f"{row['suite']}, {row['network']}: {row['task']} ({row['best_peer']})" for row in summary]
        label, ratios = "best peer's time over ours", [row["ratio"] for row in summary]
        figures.bar_figure(workdir / "speed.svg", names, ratios, ("robgrad", 1.0), label, "log")


if __name__ == "__main__":
    launch.program(work, program_flags())
