"""Headless Chromium, as tests, benchmarks and the documentation's pictures drive it with playwright."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
]


def chromium_path() -> str | None:
    """Return where Chromium, or Chrome, is on this machine; None where there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def launch(playwright: Any) -> Any:
    """Start the machine's own browser, whose version need not be playwright's."""
    return playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)


def wait_until(is_so: Callable[[], bool], otherwise: Callable[[], str], seconds: float = 60) -> None:
    """Wait until something is so.

    Playwright's own `wait_for_function` evaluates a string in the page, which a page's policy may forbid.

    Raises
    ------
    TimeoutError
        It isn't in so many seconds: with what `otherwise` says.
    """
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError(otherwise())
        time.sleep(0.02)
