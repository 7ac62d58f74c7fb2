"""From a process's start to its first heatmap: `python benchmarks/startup.py`.

mobilenet_v2 (every parameter redrawn) and one JPEG: a minimal script that predicts with a bare onnxruntime
session and decodes with OpenCV; `onnxplain explain`, which writes an overlay and its record; with `--gradcam`
a script that does the same with pytorch-grad-cam, weights loaded from a file (`pip install -c constraints.txt
".[bench]"`). They take turns, their bytecode cached, as pip leaves it; printed are the medians, and the ratio
to the minimal script.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from latency import PACKAGES, measured_with, print_row
from networks import build, export_files

NETWORK = "mobilenet_v2"

# What pip installs as the command `onnxplain`.
COMMAND = "import sys; from onnxplain.cli import main; sys.exit(main(prog_name='onnxplain'))"

MINIMAL = """
import sys
import cv2
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
image = cv2.resize(cv2.imread(sys.argv[2]), (224, 224)).astype(np.float32) / 255
tensor = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
session.run(None, {session.get_inputs()[0].name: tensor})
"""

GRADCAM = """
import sys
sys.path.append(sys.argv[4])
from torchvision_operators import declare_torchvision_operators
declare_torchvision_operators()
import cv2
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from torchvision.models import mobilenet_v2

network = mobilenet_v2()
network.load_state_dict(torch.load(sys.argv[1], weights_only=True))
image = cv2.resize(cv2.imread(sys.argv[2]), (224, 224)).astype("float32") / 255
tensor = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
with GradCAM(network.eval(), [network.features]) as cam:
    heatmap = cam(tensor, None)[0]
cv2.imwrite(sys.argv[3], show_cam_on_image(image, heatmap))
"""


def main() -> None:
    """Write the files, run each contender in turn, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--gradcam", action="store_true", help="time pytorch-grad-cam too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        commands = prepare(Path(name), options.gradcam)
        times: dict[str, list[float]] = {what: [] for what in commands}
        for _ in range(options.rounds + 1):
            for what, command in commands.items():
                times[what].append(seconds_of(command))
    print(measured_with(os.cpu_count() or 1, PACKAGES))
    print_row(["from process start to", "s", "x minimal", "quartiles"])
    print_row(["---", "---:", "---:", "---:"])
    for what in commands:
        mine, minimal = (
            times[what][1:],
            times["a prediction, minimal script"][1:],
        )  # the first finds disks cold and compiles bytecode
        ratios = [a / b for a, b in zip(mine, minimal, strict=True)]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        print_row([what, f"{statistics.median(mine):.2f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}"])


def prepare(folder: Path, gradcam: bool) -> dict[str, list[str]]:
    """Write what the contenders read; return their commands by name."""
    import cv2
    from skimage.data import astronaut

    picture, overlay = str(folder / "astronaut.jpg"), str(folder / "overlay.png")
    cv2.imwrite(picture, cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR))
    files = export_files(NETWORK, folder)
    explain = [sys.executable, "-c", COMMAND, "explain", str(files.explainer), picture]
    commands = {
        "a prediction, minimal script": [sys.executable, "-c", MINIMAL, str(files.plain), picture],
        "an overlay, `onnxplain explain`": [*explain, "-o", str(folder / "why")],
    }
    if gradcam:
        import torch

        weights, tests = folder / "weights.pth", Path(__file__).parents[1] / "tests"
        torch.save(build(NETWORK).state_dict(), weights)
        script = [sys.executable, "-c", GRADCAM, str(weights), picture, overlay, str(tests)]
        commands["an overlay, pytorch-grad-cam"] = script
    return commands


def seconds_of(command: list[str]) -> float:
    """Return how long a command takes."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
