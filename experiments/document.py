r"""The result tables of the documentation, written from what is committed in `experiments/results`.

    python -m experiments.document            # writes them
    python -m experiments.document --check    # says whether they are as they should be
    python -m experiments.document --figures  # draws every record's figures, too
    python -m experiments.document --site=site  # a web page of each record and notebook, the API, and an index
    python -m experiments.document --families=10000  # simulates the rule for verdicts anew, an hour

A record is a directory of a run: `results.json`, and `measurements.npz` from which every table and verdict in it is
computed anew. Two records from before measurements were kept have none: their tables are shown, and nothing is judged
by them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from experiments.benchmark import suites
from experiments.harness import experiment, launch
from experiments.harness.pages import html, report, tables
from experiments.harness.pages.tables import Row
from experiments.harness.results import findings, records
from experiments.harness.settings import config
from experiments.harness.settings.flags import Flags
from experiments.harness.verdicts import simulation
from robgrad import runs

ROOT = Path(__file__).parent
README, SPEED = ROOT.parent / "README.md", ROOT / "benchmark" / "README.md"
NOTEBOOKS = ROOT / "notebooks"
# Records of the last benchmark, whose suites were timed apart.
NEWEST = ("benchmark", "benchmark-auto_attack")


def failures(most: int) -> str:
    """What does not hold anywhere, published or asked by us."""
    found: dict[str, dict[str, list[str]]] = {}
    for papers in (True, False):
        for neighbours in (False, True):
            found |= {text: row for (_, text), row in records.cells(papers, neighbours).items()}
    return findings.failures(found, most)


def results_of(name: str) -> dict[str, Any]:
    """A record's results by its name, tables computed anew."""
    return records.judged(records.RECORDS / name)[1]


def refresh() -> None:
    """Writes tables and claims, computed anew, into each record's results, so that no file says what no page says."""
    for path in records.records():
        _, results, recomputed = records.judged(path)
        if recomputed:
            runs.write(path / "results.json", json.dumps(results, indent=2, allow_nan=False))


def readme() -> str:
    """README with its answers, its table of findings, and what fails."""
    text = README.read_text()
    made = {
        "answers": findings.answers(results_of),
        "findings": findings.table(results_of),
        "failures": failures(5),
        "speed": speed_in_short([results_at(records.RECORDS / name) for name in NEWEST]),
    }
    for name, block in made.items():
        block = f"<!-- {name} -->\n{block}\n<!-- /{name} -->"
        head, _, rest = text.partition(f"<!-- {name} -->")
        text = head + block + rest.partition(f"<!-- /{name} -->")[2]
    return text


def results_at(record: Path) -> dict[str, Any]:
    """A benchmark's results, as they were written."""
    return json.loads((record / "results.json").read_text())


def speed_in_short(results: Sequence[dict[str, Any]]) -> str:
    """A sentence: in how many tasks robgrad is faster than the fastest float32 peer, and where it is not."""
    best = [row for one in results for row in one["against_the_best"]]
    ahead = [row for row in best if row["ratio"] > 1]
    behind: dict[str, dict[str, None]] = {}
    for row in best:
        if row["ratio"] <= 1:
            behind.setdefault(row["network"], {})[row["suite"]] = None
    where = ", ".join(f"{network} ({', '.join(tasks)})" for network, tasks in behind.items())
    return (
        f"Speed (JAX {results[0]['environment']['jax']}, two cores): robgrad is faster than the fastest peer in "
        f"{len(ahead)} of {len(best)} tasks; [behind](experiments/benchmark/README.md): "
        f"{where or 'nowhere'}."
    )


def speed() -> str:
    """`experiments/benchmark/README.md` with the tables of each recorded run of the benchmark."""
    recorded = map(results_at, sorted(records.RECORDS.glob("benchmark*")))
    block = "\n\n".join(["<!-- speed -->", *map(_of_benchmark, recorded), "<!-- /speed -->"])
    return re.sub(r"<!-- speed -->.*<!-- /speed -->", lambda _: block, SPEED.read_text(), flags=re.DOTALL)


def _of_benchmark(results: dict[str, Any]) -> str:
    """One run: targets, each variant's time as a ratio to robgrad's, where robgrad is behind, and growth."""
    rows: dict[tuple, Row] = {}
    for row in results["rows"]:
        if row["suite"] in suites.COMPARED and row["variant"] != "robgrad":
            place = (row["suite"], row["network"], row["task"])
            ratio = f"{row['ratio']:.2f}" if row["equal_work"] else "gives something else"
            named = dict(zip(("suite", "network", "task"), place, strict=True))
            rows.setdefault(place, named)[row["variant"]] = ratio
    variants = dict.fromkeys(name for row in rows.values() for name in row)
    table = tables.text(list(rows.values()), list(variants), "github")
    behind = [
        f"- {row['suite']}, {row['network']}, {row['task']}: {name} takes {ratio} of robgrad's time"
        for row in rows.values()
        for name, ratio in row.items()
        if re.fullmatch(r"0\.\d+", ratio)
    ]
    aimed = []
    for row in results["against_the_best"]:
        wanted = suites.target(row["suite"], row["network"], row["task"])
        met = "-" if wanted is None else "met" if row["ratio"] >= wanted else "**missed**"
        aimed.append(row | {"target": wanted, "met": met})
    goals = tables.text(aimed, ("suite", "network", "task", "best_peer", "ratio", "target", "met"), "github")
    place = results["environment"]
    where = f"Commit {place['commit']}, {place['devices']}{_of_processor(place)}, JAX {place['jax']}; a large float32 "
    where += f"product reaches {results['peak_flops'] / 1e9:.0f} GFLOP/s there. {results.get('note', '')}".rstrip()
    parts = [where]
    if rows:
        parts += ["Where robgrad is behind:", "\n".join(behind)] if behind else ["robgrad is behind nowhere."]
    if aimed:
        parts += ["Against the fastest float32 peer of each task, and what is aimed at:", goals]
    if rows:
        parts += ["All contenders:", table]
    if grown := results.get("growth"):
        parts += ["Growth with size, as exponents (1 is linear):", tables.text(grown, tuple(grown[0]), "github")]
    return "\n\n".join(parts)


def _of_processor(environment: Mapping[str, str]) -> str:
    return f" ({environment['processor']})" if "processor" in environment else ""


def notebook_links(directory: Path) -> list[html.Part]:
    """Writes a page of each notebook with its outputs; links to them, each with its first picture.

    Raises:
      ConfigError: if nbconvert is not installed.
    """
    try:
        import nbconvert
    except ImportError as error:
        raise config.ConfigError("--site: needs the extra 'docs': pip install '.[docs]'") from error
    exporter = nbconvert.HTMLExporter(
        template_name="basic", exclude_anchor_links=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    exporter.log.setLevel("ERROR")  # Not that pictures have no text of their own.
    links: list[html.Part] = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        title, _, about = "".join(cells[0]["source"]).removeprefix("# ").partition("\n\n")
        body, _ = exporter.from_filename(str(path))
        page = html.document(title, [html.Section("", [html.Written(re.sub(r"<h1.*?</h1>", "", body, count=1))])])
        runs.write(directory / "notebooks" / f"{path.stem}.html", page)
        links.append(
            html.Link(f"notebooks/{path.stem}.html", title, " ".join(about.split("\n\n")[0].replace("`", "").split()))
        )
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
        for picture in [data["image/png"] for data in outputs if "image/png" in data][:1]:
            source = f"data:image/png;base64,{''.join(picture).strip()}"
            links.append(html.Written(f'<img src="{source}" alt="A picture of {title}">'))
    return links


def write_reference(directory: Path) -> None:
    """Writes a page of each module of the library, from its docstrings.

    Raises:
      ConfigError: if pdoc is not installed.
    """
    try:
        import pdoc
    except ImportError as error:
        raise config.ConfigError("--site: needs the extra 'docs': pip install '.[docs]'") from error
    pdoc.pdoc("robgrad", output_directory=directory / "api")


def write_site(directory: Path) -> Path:
    """A static site: a page of each record and notebook, the API, and an index; nothing is fetched from elsewhere."""
    notebooks = notebook_links(directory)
    write_reference(directory)
    lines = []
    for path in records.records():
        one, results, recomputed = records.judged(path)
        page = directory / f"{path.name}.html"
        report.write_page(page, one.title, [(one, experiment.Finished(path, results))])
        lines.append(html.Link(f"{path.name}.html", path.name, records.about(one, results, recomputed)))
    said = re.sub(r"\*\*|<!--.*?-->", "", findings.answers(results_of)).split("\n")
    found = [line.removeprefix("- ") for line in said if line]
    reference = html.Link("api/robgrad.html", "The API", "every public name, with formula, shapes and units.")
    body = [
        html.Section("What it found", found),
        html.Section("Notebooks", notebooks),
        html.Section("The library", [reference]),
        html.Section("The records", lines),
    ]
    runs.write(directory / "index.html", html.document("robgrad", body))
    return directory / "index.html"


def work(given: Flags) -> None:
    """Writes the tables, or checks them; draws figures where that is asked for."""
    if given.values.figures:
        records.redraw()
    if given.values.families:
        simulated = {"families": given.values.families, "rows": [*simulation.rows(given.values.families)]}
        runs.write(records.SIMULATED, json.dumps(simulated, indent=1))
    if given.values.site:
        launch.show(f"written: {write_site(Path(given.values.site).expanduser())}")
    wanted = {records.RECORDS / "README.md": records.index_page(failures(1000)), README: readme(), SPEED: speed()}
    wanted |= {path / "README.md": records.record_page(path) for path in records.records()}
    different = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if given.values.check and different:
        names = ", ".join(str(path.relative_to(ROOT.parent)) for path in different)
        raise absl_flags.Error(f"{names}: not what the records say; run python -m experiments.document")
    if not given.values.check:
        refresh()
    for path in different:
        path.write_text(wanted[path])
        launch.show(f"written: {path}")


def program_flags() -> Flags:
    """The program's flags."""
    given = Flags(__doc__ or "")
    given.add("run", "bool", "check", False, "Write nothing; fail if something differs.")
    text = "Also write records, notebooks and the API as web pages into this directory."
    given.add("run", "string", "site", None, text)
    text = "Simulated families of claims for the table of how often verdicts are wrong; 0 keeps the table."
    given.add("run", "integer", "families", 0, text, lower_bound=0)
    given.add("run", "bool", "figures", False, "Draw the figures of every record with measurements anew.")
    return given


if __name__ == "__main__":
    launch.program(work, program_flags())
