"""What the tests need before any of them runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from other_engines import PACKAGES
from torchvision_operators import declare_torchvision_operators

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from chromium import chromium_path, launch
from engine_runs import node_modules

declare_torchvision_operators()
if "PYTEST_XDIST_WORKER" in os.environ:  # there is one for each core
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    driver = pytest.importorskip(
        "playwright.sync_api", reason="playwright, which drives the browser, isn't here"
    )
    if chromium_path() is None:
        pytest.skip("there is no Chromium")
    with driver.sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def npm_packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have npm's packages where NODE_PATH says: those that are there, or those that the project pins."""
    if node_modules(*PACKAGES):
        yield
        return
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Node and its npm are not here")
    folder = tmp_path_factory.mktemp("npm")
    options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund", "--fetch-retries=1"]
    command = ["npm", "install", "--prefix", str(folder), *options, *PACKAGES.values()]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"npm can't install the packages: {installed.stderr.splitlines()[:1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODE_PATH", str(folder / "node_modules"))
        yield
