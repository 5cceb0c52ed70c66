"""How far a stage has come, as one line, as a log, as TensorBoard event files."""

import contextlib
import logging
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.harness.launch import detail, width


@contextlib.contextmanager
def progress(stage: str, events: Path | None = None, names: Sequence[str] = ()) -> Iterator[Callable]:
    """Yields a reporter for `training.fit`: one line, rewritten on a terminal, else once a minute and at the end.

    With `-v` every report is a line of the log, with `--quiet` none is anywhere; where `events` is a directory its
    metrics go to event files there, a curve for each of the stack's `names`.
    """
    terminal = sys.stderr.isatty()
    created = began = last = time.monotonic()
    first, open_line = 0, False
    writer: Any = None
    if events is not None and not jax.process_index():
        from tensorboardX import SummaryWriter

        writer = SummaryWriter(str(events))

    def report(done) -> None:
        nonlocal last, first, began, open_line
        if jax.process_index():
            return
        now = time.monotonic()
        if not first:
            # The first segment holds the compilation, so the rate counts from its end.
            first, began = done.step, now
        for metric, values in done.metrics.items() if writer else ():
            for name, value in zip(names, values, strict=True):
                writer.add_scalar(f"{metric}/{name}", float(value), done.step)
        rate = (done.step - first) / (now - began) if now > began else 0.0
        finished = done.step == done.steps
        left = f"{(done.steps - done.step) / rate:.0f} s left" if rate else "estimating time left"
        left = f"took {now - created:.0f} s" if finished else left
        speed = f", {rate:.3g} steps/s" if rate else ""
        values = "".join(f", {name} {_span(metric)}" for name, metric in done.metrics.items())
        epochs = f"{stage}: epoch {done.epoch:.1f} of {done.epoch * done.steps / done.step:.0f}"
        line = f"{epochs}{values}{speed}, {left}"
        detail.info("%s", line)
        if terminal:
            line = _fitted(epochs, f"{values}{speed}", f", {left}", width() - 1)
        if detail.isEnabledFor(logging.WARNING) and (terminal or finished or now - last > 60):
            last, open_line = now, terminal and not finished
            print(f"\r{line}\033[K" if terminal else line, end="" if open_line else "\n", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if open_line:
            print(file=sys.stderr)
        if writer:
            writer.close()


def notes(of: str) -> Callable[[str], None]:
    """Builds what says by a line that a part of something long has begun, each line once; not with `--quiet`."""
    said: set[str] = set()

    def note(line: str) -> None:
        if line not in said and detail.isEnabledFor(logging.WARNING) and not jax.process_index():
            print(f"{of}: {line}", file=sys.stderr, flush=True)
        said.add(line)

    return note


def counted(blocks: Sequence, stage: str) -> Iterator[tuple[int, Any]]:
    """`enumerate` of the blocks of a stage, with its progress."""
    with progress(stage) as report:
        for block, rows in enumerate(blocks):
            yield block, rows
            report(
                types.SimpleNamespace(step=block + 1, steps=len(blocks), epoch=(block + 1) / len(blocks), metrics={})
            )


def counted_networks(count: int) -> str:
    """How many networks, as a line says it."""
    return f"{count} network" + "s" * (count != 1)


def _fitted(start: str, middle: str, end: str, width: int) -> str:
    """A line that fits a width: without its middle where that is too much, and then with its start cut."""
    if len(start + middle + end) <= width:
        return start + middle + end
    return start[: max(width - len(end), 1)] + end


def _span(values) -> str:
    low, high = float(min(values)), float(max(values))
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
