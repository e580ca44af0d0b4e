"""How fast the page is at the size of a paper: `make benchmark NAME=page` writes page.md beside this file.

Simulated spectra of 100 maps of 64 channels at 20 snapshots of 4 arms with 3 seeds each, compared and drawn as those of
a real experiment; the page is opened in a headless Chromium. First paint is what the browser reports. A control's time
is from the event to the new picture being in the document: of the slider over all snapshots, and of the choice of
another map.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from eigendet.report.page import write_page
from tests import chromium
from tests.simulated import compare, simulate

TIMED = """async ([id, values]) => {
  const times = [];
  for (const value of values) {
    const control = document.getElementById(id);
    control.value = value;
    const start = performance.now();
    await move();
    times.push(performance.now() - start);
  }
  return times;
}"""


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="page"))
    try:
        arms = ("finetune", "scratch", "derived", "uniform_parameters")
        simulate(folder, arms, steps=[*range(19), 4000], layers=100, channels=64)
        start = time.perf_counter()
        compare(folder)
        compared = time.perf_counter() - start
        start = time.perf_counter()
        write_page(folder)
        drawn = time.perf_counter() - start
        size = (folder / "report.html").stat().st_size / 1e6
        with chromium.started() as browser:
            page = browser.new_page()
            start = time.perf_counter()
            page.goto((folder / "report.html").as_uri())
            page.wait_for_selector("body[data-ready=yes]", timeout=120_000)
            ready = time.perf_counter() - start
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
            slider = page.evaluate(TIMED, ["spectrum-snapshot", list(range(20))])
            layer = page.evaluate(TIMED, ["spectrum-layer", list(range(0, 100, 5))])
            version = browser.version
    finally:
        shutil.rmtree(folder)
    lines = [
        "# How fast the page is at the size of a paper", "",
        *(__doc__ or "").strip().split("\n\n", 1)[1].split("\n"), "",
        f"Chromium {version}, {platform.machine()}.", "", "| what | |", "| --- | --- |",
        f"| comparing 12 runs | {compared:.0f} s |", f"| writing page and figures | {drawn:.0f} s |",
        f"| size of the page | {size:.1f} MB |",
        f"| first paint | {paint:.2f} s |", f"| everything drawn | {ready:.1f} s |",
    ]  # fmt: skip
    for name, times in (("slider", slider), ("choice of a map", layer)):
        lines.append(f"| {name}: median, longest | {np.median(times):.0f} ms, {max(times):.0f} ms |")
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
