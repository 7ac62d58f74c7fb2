"""Time explanations in the browser and in Python: `python benchmarks/browser.py MODEL.onnx PICTURE`.

MODEL is exported with --heatmap and --pixels. Timed is all but the decoding: in headless Chromium, as the
page itself says it, and in Python. Needs npm, Chromium, and playwright.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from chromium import launch
from playwright.sync_api import sync_playwright

from onnxplain import Explainer
from onnxplain.images import read_image
from onnxplain.web_page import write_page

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from page_server import FOR_THREADS, Server


def in_python(model: Path, picture: Path, repeats: int) -> list[float]:
    """Return the milliseconds of each explanation of one class, its heatmap included."""
    explainer, pixels = Explainer(model, device="cpu"), read_image(picture)
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        _ = explainer.explain(pixels).heatmap
        found.append(1000 * (time.perf_counter() - start))
    return found


def in_browser(folder: Path, picture: Path, repeats: int, headers: dict[str, str]) -> tuple[list[float], str]:
    """Return the milliseconds of each explanation as the page says them, and its threads."""
    server = Server(folder, headers)
    found = []
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page()
        page.add_init_script(
            "document.addEventListener('explained', () => (window.done = (window.done ?? 0) + 1))"
        )
        page.goto(server.url)
        threads = page.inner_text("#facts li:has-text('thread')")
        page.wait_for_selector("#facts li:has-text('works offline')")
        for number in range(repeats):
            page.set_input_files("#file", picture)
            while page.evaluate("window.done ?? 0") <= number:
                time.sleep(0.05)
            found.append(float(page.inner_text("#status").rpartition(" ms")[0].rpartition(" ")[2]))
        browser.close()
    server.stop()
    return found, threads


def describe(milliseconds: Sequence[float]) -> str:
    return f"median {statistics.median(milliseconds):.0f} ms, fastest {min(milliseconds):.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument(
        "--threads", action="store_true", help="serve the page with the headers that threads take"
    )
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    headers = FOR_THREADS if arguments.threads else {}
    timed = in_python(arguments.model, arguments.picture, arguments.repeats)
    print(f"Python: {describe(timed)}, the first {timed[0]:.0f} ms")
    with tempfile.TemporaryDirectory() as folder:
        write_page(arguments.model, Path(folder) / "page")
        timed, threads = in_browser(Path(folder) / "page", arguments.picture, arguments.repeats, headers)
    print(f"Chromium, {threads}: {describe(timed)}, the first {timed[0]:.0f} ms")


if __name__ == "__main__":
    main()
