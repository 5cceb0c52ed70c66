"""Lists the programs: `python -m experiments`."""

import importlib
import pkgutil

import experiments
from experiments.harness import experiment
from experiments.harness.pages import tables

_OTHERS = {
    "reproduce": ("every experiment on shared networks, and one page", "35 minutes", "report.html"),
    "neighbours": ("three later works on the same question, and one page", "12 minutes", "report.html"),
    "benchmark": ("what robgrad costs against what one would use instead", "an hour or more", "speed.svg"),
    "document": ("the result tables of the documentation, from the recorded runs", "seconds", "-"),
}


def main() -> None:
    """Prints a line for each program: what it asks, how long it takes on two cores, what to look at."""
    rows = [
        {"program": f"python -m experiments.{one.name}", "about": one.title, "two cores": one.takes, "see": one.picture}
        for one in experiment.every()
    ]
    named = {one.name for one in experiment.every()}
    for info in pkgutil.iter_modules(experiments.__path__):
        if info.name in _OTHERS and info.name not in named and importlib.util.find_spec(f"experiments.{info.name}"):
            about, takes, see = _OTHERS[info.name]
            rows.append(
                {"program": f"python -m experiments.{info.name}", "about": about, "two cores": takes, "see": see}
            )
    print(tables.text(rows, list(rows[0])))
    print("\n--help after any of them lists its flags.")


if __name__ == "__main__":
    main()
