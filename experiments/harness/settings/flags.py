"""A program's flags, read off its experiments' configurations; nothing below a `main` sees them.

Each program has flags of its own, so that `--help` shows what it takes and two programs in one process do not meet.
"""

import collections
import dataclasses
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from absl import flags

from experiments.harness.settings import options
from experiments.harness.settings.config import Config, settings_of
from experiments.harness.settings.presets import Presets, shared
from robgrad import attacks

HELP = ("-h", "-help", "--help", "--helpshort", "--helpfull")
_GROUPS = {
    "run": "What is run",
    "settings": "Settings; a preset gives each a value, shown in brackets",
    "options": "How it is run; changes no number",
}


class Flags:
    """The flags of one program: definitions by group, then values.

    Attributes:
      values: absl's flag values, one attribute a flag.
    """

    def __init__(
        self, about: str, kinds: Sequence[type[Config]] = (), presets: Presets | None = None, dataset: str = "digits"
    ):
        """Defines what every program has, and the settings of some kinds of configuration.

        Args:
          about: the program's docstring, shown by `--help`.
          kinds: configurations whose settings become flags.
          presets: of the first kind, to show values from.
          dataset: the default.
        """
        self.values, self.about, self.presets = flags.FlagValues(), about, presets or {}
        self._names: dict[str, list[str]] = collections.defaultdict(list)
        self._by_norm: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
        if any("dataset" in {field.name for field in dataclasses.fields(kind)} for kind in kinds):
            self._define_dataset(dataset)
        self._define_run()
        self._define_options()
        for kind in kinds:
            hints = get_type_hints(kind)
            for field in settings_of(kind):
                self._define_setting(field, hints[field.name])

    def add(self, group: str, kind: str, name: str, default: Any, text: str, *arguments: Any, **bounds: Any) -> None:
        """Defines one flag as absl's `DEFINE_kind` does, in a group of the help."""
        define = getattr(flags, f"DEFINE_{kind}")
        define(name, default, *arguments, text, flag_values=self.values, **bounds)
        if kind == "enum":
            # In words, as of lists: absl's own '<one|other>' has no place at which a line could end.
            self.values[name].help = f"{text} One of {', '.join(*arguments)}."
        self._names[group].append(name)

    def check(self, name: str, is_good, expected: str) -> None:
        """Refuses values of a flag, saying what was expected; None always passes."""
        flags.register_validator(
            name, lambda value: value is None or is_good(value), f"expected {expected}", flag_values=self.values
        )

    def parse(self, arguments: Sequence[str]) -> None:
        """Reads a command line, `arguments[0]` the program's name.

        Raises:
          flags.Error: if there is something in it that is not understood.
          SystemExit: after printing help, where it asks for that.
        """
        rest = [one for one in arguments if one not in HELP]
        others = self.values(rest)
        if len(rest) < len(arguments):
            print(self.help())
            sys.exit(0)
        if len(others) > 1:
            raise flags.Error(f"unexpected argument '{others[1]}'")

    def help(self) -> str:
        """What the program is, and all its flags by group with their defaults."""
        read = self.values.is_parsed()
        name = str(self.values["dataset"].value) if "dataset" in self.values else ""
        preset = self.presets.get(self.values.preset if read else "quick", {}).get(name, {})
        lines = [self.about.strip(), ""]
        for group, title in _GROUPS.items():
            lines.append(f"{title}:")
            for flag in self._names[group]:
                default = self.values[flag].default
                shown = _shown(preset.get(flag) if default is None and flag in preset else default)
                shown = _shown(self._by_norm.get(flag, lambda preset: None)(preset)) or shown
                value = f" [{shown}]" if shown else ""
                text = f"{self.values[flag].help}{value}"
                lines += textwrap.wrap(
                    f"--{flag}: {text}", 100, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
                )
            lines.append("")
        return "\n".join(lines)

    def given(self, kind: type[Config]) -> dict[str, Any]:
        """The settings of a configuration that were given, by field."""
        found: dict[str, Any] = {}
        hints = get_type_hints(kind)
        for field in settings_of(kind):
            if field.metadata["by_norm"]:
                by_norm = {norm: self._value(field.metadata["by_norm"].format(norm), float) for norm in attacks.NORMS}
                by_norm = {norm: value for norm, value in by_norm.items() if value is not None}
                if by_norm:
                    found[field.name] = by_norm
            elif (
                value := self._value(field.name, float if hints[field.name] == tuple[float, ...] else str)
            ) is not None:
                found[field.name] = value
        return found

    def common(self) -> dict[str, Any]:
        """What every configuration has."""
        return {name: getattr(self.values, name) for name in ("preset", "seed", "matmul_precision")}

    def options(self) -> options.Options:
        """The options of the flags."""
        chosen = {field.name: getattr(self.values, field.name) for field in dataclasses.fields(options.Options)}
        source = chosen["networks_from"]
        return options.Options(**chosen | {"networks_from": Path(source).expanduser() if source else None})

    def _value(self, flag: str, kind: type) -> Any:
        value = self.values[flag].value
        if not isinstance(value, list):
            return value
        return tuple(sorted(map(float, value)) if kind is float else value)

    def _define_dataset(self, default: str) -> None:
        text = (
            "'digits' (embedded), 'shapes' (rendered; 'shapes-16', 'shapes-32x3'), 'generated:RUN' (by the VAE-GAN of "
            "a run's directory), the TFDS name of an image set, the path of an .npz file, or a folder, as './photos', "
            "of class folders of images, or a set that Hugging Face's datasets has saved."
        )
        self.add("run", "string", "dataset", default, text)
        text = "TFDS data directory. Default: $TFDS_DATA_DIR, then ~/tensorflow_datasets."
        self.add("run", "string", "data_dir", None, text)
        text = "Pixels of each side that the images of a folder are resized to. Default: as they are."
        self.add("run", "integer", "image_size", None, text, lower_bound=8)

    def _define_run(self) -> None:
        sizes = "Sizes: 'quick' for two CPU cores, the paper's, or 'modern': a robust network as trained today."
        self.add("run", "enum", "preset", "quick", sizes, sorted(shared(), reverse=True))
        self.add("run", "integer", "seed", 0, "Seed of everything random.", lower_bound=0)
        text = "Precision of matrix products and convolutions where the device has a faster one than float32."
        self.add("run", "enum", "matmul_precision", "float32", text, list(options.PRECISIONS))
        self.add("run", "string", "workdir", None, "Directory of this run. Default: one in runs/, named after it.")

    def _define_options(self) -> None:
        text = "How often training saves: minutes (10m), seconds (90s) or steps (500), at segment ends."
        self.add("options", "string", "checkpoint_every", "10m", text)
        expected = "a positive number of minutes (10m), seconds (90s) or steps (500)"
        self.check("checkpoint_every", options.is_interval, expected)
        text = "Write training curves as TensorBoard event files into the run's directory."
        self.add("options", "bool", "tensorboard", False, text)
        text = "Split the training data over devices instead of copying it to each."
        self.add("options", "bool", "shard_data", False, text)
        text = "Retrainings in one stack. Default: as many as memory allows."
        self.add("options", "integer", "stack_size", None, text, lower_bound=1)
        text = "Directory of another run, trained alike, whose networks and manifold are used."
        self.add("options", "string", "networks_from", None, text)
        self.add("options", "bool", "verbose", False, "Log every report and compilation.", short_name="v")
        text = "Print no progress, but what was found and what went wrong."
        self.add("options", "bool", "quiet", False, text, short_name="q")
        text = "HOST:PORT of process 0, for a run of several processes."
        self.add("options", "string", "coordinator_address", None, text)
        self.add("options", "integer", "num_processes", None, "Processes in all, one a host.", lower_bound=1)
        text = "This process, from 0; only 0 writes results."
        self.add("options", "integer", "process_id", None, text, lower_bound=0)

    def _define_setting(self, field: dataclasses.Field, kind: Any) -> None:
        meta = field.metadata
        if meta["by_norm"]:
            for norm in attacks.NORMS:
                name = meta["by_norm"].format(norm)
                self._by_norm[name] = partial(_of_norm, field.name, norm)
                several = "tuple" in str(kind)
                self._define_one(name, meta["help"].format(norm), tuple[float, ...] if several else float, meta)
        else:
            default = "" if field.default is dataclasses.MISSING else f" Default: {_shown(field.default)}."
            self._define_one(field.name, meta["help"] + default, kind, meta)

    def _define_one(self, name: str, text: str, kind: Any, meta: Mapping[str, Any]) -> None:
        if name in self.values:
            return
        choices = meta["choices"]() if meta["choices"] else None
        if choices and kind is str:
            self.add("settings", "enum", name, None, text, list(choices))
        elif choices:
            self.add("settings", "list", name, None, f"{text} Some of {', '.join(choices)}.")
            some = f"some of {', '.join(choices)}, each once, separated by commas"
            self.check(name, lambda given: len({*given}) == len(given) > 0 and {*given} <= {*choices}, some)
        elif kind == tuple[str, ...]:
            self.add("settings", "list", name, None, text)
        elif kind is bool:
            self.add("settings", "bool", name, None, text)
        elif kind is int:
            self.add("settings", "integer", name, None, text, lower_bound=0 if meta["zero"] else 1)
        else:
            bound = f"{'>= 0' if meta['zero'] else '> 0'}" + (
                f" and < {meta['most']:g}" if meta["most"] < np.inf else ""
            )

            def fits(value):
                return np.isfinite(value) and (value > 0 or (meta["zero"] and value == 0)) and value < meta["most"]

            if kind is float:
                self.add("settings", "float", name, None, text)
                self.check(name, fits, f"a finite number {bound}")
            else:
                self.add("settings", "list", name, None, text)
                self.check(
                    name, lambda given: _are(given, fits), f"different finite numbers {bound}, separated by commas"
                )


def _of_norm(field: str, norm: str, preset: Mapping[str, Any]) -> Any:
    return preset.get(field, {}).get(norm)


def _are(given: Sequence[str], fits) -> bool:
    try:
        numbers = [float(one) for one in given]
    except ValueError:
        return False
    return len({*numbers}) == len(numbers) > 0 and all(map(fits, numbers))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return (
        ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
        if isinstance(value, list | tuple)
        else str(value)
    )
