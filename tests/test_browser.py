"""Pages in a real browser: nothing is wider than the screen, no figure is empty, by daylight and in the dark."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.harness import experiment
from experiments.harness.pages import report

RESULTS = Path(__file__).parent.parent / "experiments" / "results"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Written into the page once it stands, and read from what the browser made of it.
PROBE = """<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body > *, figure, figure img, p, pre, details, button.columns")]
    .filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName);
  const empty = [...document.querySelectorAll("figure img")].filter(one => !one.naturalWidth).length;
  const columns = [...document.querySelectorAll("table")].map(
    one => [...one.rows[0].cells].filter(cell => cell.offsetWidth).length);
  const first = document.querySelector("h2").nextElementSibling;
  const style = getComputedStyle(document.body);
  document.documentElement.dataset.found = JSON.stringify({
    across: document.documentElement.scrollWidth, screen: innerWidth, wide, empty,
    figures: document.querySelectorAll("figure img").length, columns: Math.max(0, ...columns),
    answer: first.textContent, colours: [style.color, style.backgroundColor]});
});
</script>"""


def seen(page, width, scheme=1):
    """What the browser found of a page on a screen of so many pixels; scheme 0 is dark, 1 light."""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text() + PROBE)
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    command += [f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={page.parent / 'browser'}"]
    shown = subprocess.run([*command, f"file://{probed}"], capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'data-found="([^"]*)"', shown)
    assert found, shown[:500]
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<"))


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome to look with")
@pytest.mark.parametrize("record", ["robustness-digits", "manifold_distance-digits"])
def test_a_page_fits_every_screen(record, tmp_path):
    results = json.loads((RESULTS / record / "results.json").read_text())
    one = experiment.named(results["experiment"])
    page = tmp_path / "report.html"
    report.write_page(page, one.title, [(one, experiment.Finished(RESULTS / record, results))])
    colours = set()
    for width, scheme in ((1280, 1), (500, 0), (390, 1)):
        found = seen(page, width, scheme)
        assert found["across"] <= found["screen"] + 1, found
        assert not found["wide"], found
        assert found["figures"] > 0
        assert not found["empty"], found
        assert found["columns"] <= 8
        assert re.search(r"holds|not told|seen once", found["answer"]), found
        colours.add(tuple(found["colours"]))
    assert len(colours) == 2, colours
