"""Make the README's picture of a report: `python docs/make_report_figure.py`.

A network that ships with the package explains the sample scenes and photographs of scikit-image, as
`onnxplain explain --report` does, and Chromium (with the package playwright) takes the picture.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image
from playwright.sync_api import sync_playwright

from onnxplain_models import explainer_file, samples

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from chromium import launch, wait_until

FIGURE = Path(__file__).parent / "images" / "report.png"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SCENES = ("eight", "four", "seven", "six")
SIZE = {"width": 1060, "height": 984}


def write_report(folder: Path) -> Path:
    """Write the pictures and their report into a folder; return the page."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for name in PHOTOGRAPHS:
        Image.fromarray(getattr(skimage.data, name)()).save(pictures / f"{name}.png")
    for sample in samples():
        if sample.name in SCENES:
            shutil.copy(sample.picture, pictures)
    (folder / "vgg_cam.onnx").write_bytes(explainer_file("vgg_cam").read_bytes())
    command = [sys.executable, "-m", "onnxplain", "explain", "vgg_cam.onnx", "pictures", "--top", "3"]
    command += ["--method", "gradcam", "--method", "layercam", "--report", "--output", "why"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "why" / "report.html"


def photograph(page: Path) -> None:
    """Take the picture."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        tab = browser.new_page(viewport=SIZE, color_scheme="light", device_scale_factor=0.85)
        tab.goto(page.as_uri())
        tab.get_by_label("Boxes").first.check()
        wait_until(
            lambda: bool(tab.evaluate("[...document.images].every(one => one.complete)")),
            lambda: "the report's images aren't loaded",
        )
        tab.screenshot(path=FIGURE)
        browser.close()
    with Image.open(FIGURE) as taken:
        taken.convert("RGB").save(FIGURE, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        photograph(write_report(Path(folder)))
