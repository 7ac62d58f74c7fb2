"""Headless Chromium, as tests, benchmarks and the documentation's pictures drive it with playwright."""

from __future__ import annotations

import shutil
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
