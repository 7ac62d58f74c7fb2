"""Time how reports open: `python benchmarks/report_page.py why/report.html ...`.

Each is opened in turn, in headless Chromium, in a new profile; printed are the medians of the seconds from
the request to the `load` event and to the first picture being decoded, and the slowest of the latter.
Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from chromium import launch
from playwright.sync_api import sync_playwright


def main() -> None:
    """Open the pages in turn, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    times: dict[Path, list[tuple[float, float]]] = {report: [] for report in options.reports}
    pictures: dict[Path, int] = {}
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for _ in range(options.rounds):
            for report in options.reports:
                context = browser.new_context()
                tab = context.new_page()
                times[report].append(seconds_to_open(tab, report))
                pictures[report] = tab.locator(".card").count()
                context.close()
        browser.close()
    print("| pictures | page, MB | loaded, s | first picture, s | slowest, s |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for report, found in times.items():
        loaded, shown = (statistics.median(column) for column in zip(*found, strict=True))
        slowest = max(last for _, last in found)
        size = report.stat().st_size / 1e6
        print(f"| {pictures[report]} | {size:.1f} | {loaded:.2f} | {shown:.2f} | {slowest:.2f} |")


def seconds_to_open(tab: Any, report: Path) -> tuple[float, float]:
    """Return the seconds until the page is loaded, and until its first picture is there."""
    start = time.perf_counter()
    tab.goto(report.resolve().as_uri())
    loaded = time.perf_counter() - start
    tab.locator(".card .photo").first.evaluate("picture => picture.decode()")
    return loaded, time.perf_counter() - start


if __name__ == "__main__":
    main()
