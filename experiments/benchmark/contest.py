"""Contenders of the benchmark: processes that prepare their tasks, then take turns at them.

A contender's process writes lines of JSON: first what its tasks gave and took when they ran first, then the
seconds of a task each time it is named on its standard input.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness import launch

_MARK = "@contest "
Task = Callable[[], Sequence[float]]


class FailedError(RuntimeError):
    """A contender that is not installed or cannot do its tasks; the message says why."""


class Contender:
    """A contender's processes, one or several that work together; the first answers for all.

    Attributes:
      values: what each task gave when it last ran.
      compilation: seconds of building and first running each task beyond those of a second run.
    """

    def __init__(self, commands: Sequence[Sequence[str]], variables: Mapping[str, str]):
        """Starts them, and waits until they are ready.

        Raises:
          FailedError: if they end instead.
        """
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        environment = os.environ | dict(variables)
        self._processes = [subprocess.Popen(one, env=environment, text=True, **pipes) for one in commands]
        ready = self._answer()
        self.values: dict[str, list[float]] = ready["values"]
        self.compilation: dict[str, float] = ready["compilation"]

    def take(self, task: str) -> float:
        """Seconds of one run of a task, the other contenders resting."""
        self._say(task)
        answer = self._answer()
        self.values[task] = answer["values"]
        return answer["seconds"]

    def end(self) -> int:
        """Ends the processes; returns the most memory that one of them took, in bytes."""
        self._say("")
        memory = self._answer()["memory"]
        for process in self._processes:
            process.communicate(timeout=60)
        return memory

    def _say(self, line: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{line}\n")
            process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        first, said = self._processes[0], []
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
            said.append(line)
        for process in self._processes:
            process.kill()
        raise FailedError(said[-1].strip() if said else f"ended with status {first.wait()}")


def serve(builders: Mapping[str, Callable[[], Task]], long: bool = False) -> None:
    """In a contender's process: builds and runs each task, and runs it again, then whatever is asked for.

    Tasks that take long warm up while they are built, and are run when asked for alone.
    """
    tasks: dict[str, Task] = {}
    values: dict[str, list[float]] = {}
    compilation = {}
    for name, build in builders.items():
        began = time.perf_counter()
        tasks[name] = build()
        values[name] = [] if long else _timed(tasks[name])[1]
        built = time.perf_counter() - began
        second = 0.0 if long else _timed(tasks[name])[0]
        compilation[name] = max(0.0, built - second)
    _write({"values": values, "compilation": compilation})
    for line in sys.stdin:
        if not line.strip():
            break
        seconds, given = _timed(tasks[line.strip()])
        _write({"seconds": seconds, "values": given})
    _write({"memory": launch.peak_memory()})


def _timed(task: Task) -> tuple[float, list[float]]:
    began = time.perf_counter()
    values = [float(value) for value in task()]
    return time.perf_counter() - began, values


def _write(answer: Mapping[str, Any]) -> None:
    print(f"{_MARK}{json.dumps(answer)}", flush=True)


def joined(count: int) -> list[list[str]]:
    """What each of several processes that work together is told: an address, how many there are, which it is."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [[address, str(count), str(index)] for index in range(count)]


def join(address: str, count: str, index: str) -> None:
    """In one of several processes: keeps to its part of the cores, as on a machine of its own, and finds the others."""
    import jax

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(index) :: int(count)])
    jax.distributed.initialize(address, int(count), int(index))


def read(file: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file of work, and what else it says."""
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    return arrays, json.loads(str(arrays.pop("spec")))
