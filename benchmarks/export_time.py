"""What an export costs, in time and memory, against PyTorch's own: `python benchmarks/export_time.py`.

torchvision's networks at their automatic layers, or those of `--networks resnet50 resnet50:layer1
timm:vit_base_patch16_siglip_gap_224`: of torchvision, or of timm with 1000 classes, every parameter redrawn.
Each is exported by onnxplain, and by `torch.onnx.export` to a plain file, in new processes that take turns.
What is timed begins when torch is imported and the network built, and ends with the file.

Printed are medians, and the ratio of the processor times: the median over rounds, with its quartiles. The
time on the clock depends on what else the machine does; processor time does so less. Memory is the peak of
the process, torch and the network's own weights among it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from latency import measured_with, print_row
from networks import SEED, SIZE, build, export_plain

if TYPE_CHECKING:
    import torch

NETWORKS = ("resnet50", "convnext_tiny", "efficientnet_v2_s", "vit_b_16", "resnet50:layer1")
EXPORTERS = ("torch.onnx.export", "onnxplain")
PACKAGES = ("onnxplain", "onnxruntime", "torch", "numpy", "scipy")


def main() -> None:
    """Export each network with both exporters in turn, and print the table; or do one of these exports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="[timm:]NETWORK[:LAYER]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", nargs=2, metavar=("EXPORTER", "NETWORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measured(*options.once)))
        return
    print(measured_with(os.cpu_count() or 1, PACKAGES))
    print_row(
        [
            "network",
            "torch.onnx.export, CPU s",
            "onnxplain, CPU s",
            "ratio",
            "s",
            "peak, GB",
            "torch's peak, GB",
        ]
    )
    print_row(["---", *["---:"] * 6])
    for spec in options.networks:
        print_row(row(spec, options.rounds))


def row(spec: str, rounds: int) -> list[str]:
    """Return a network's row."""
    runs: dict[str, list[dict[str, float]]] = {exporter: [] for exporter in EXPORTERS}
    for _ in range(rounds):
        for exporter in EXPORTERS:
            runs[exporter].append(in_a_process(exporter, spec))
    theirs, own = (runs[exporter] for exporter in EXPORTERS)
    ratios = [one["cpu"] / other["cpu"] for one, other in zip(own, theirs, strict=True)]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return [
        spec,
        f"{median(theirs, 'cpu'):.1f}",
        f"{median(own, 'cpu'):.1f}",
        f"{middle:.2f} ({low:.2f}–{high:.2f})",
        f"{median(own, 'wall'):.1f}",
        f"{median(own, 'peak'):.1f}",
        f"{median(theirs, 'peak'):.1f}",
    ]


def median(runs: Sequence[dict[str, float]], what: str) -> float:
    """Return the median of what was measured in several runs."""
    return statistics.median(run[what] for run in runs)


def in_a_process(exporter: str, spec: str) -> dict[str, float]:
    """Measure an export in a process of its own."""
    command = [sys.executable, __file__, "--once", exporter, spec]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return result


def measured(exporter: str, spec: str) -> dict[str, float]:
    """Export a network; return the seconds of processor and clock that it took, and the peak memory in GB."""
    network, layer = built(spec)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        cpu, wall = time.process_time(), time.perf_counter()
        if exporter == "onnxplain":
            export_explainer(network, file, layer)
        else:
            export_plain(network, file)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"cpu": cpu, "wall": wall, "peak": peak}


def built(spec: str) -> tuple[torch.nn.Module, str | None]:
    """Return a network with every parameter redrawn, and the layer that is named, or None."""
    name, _, layer = spec.removeprefix("timm:").partition(":")
    if not spec.startswith("timm:"):
        return build(name), layer or None
    import torch

    from redraw import redraw
    from torchvision_operators import declare_torchvision_operators

    declare_torchvision_operators()
    import timm

    network = timm.create_model(name, num_classes=1000)
    return redraw(network, torch.zeros(1, 3, SIZE, SIZE), SEED), layer or None


def export_explainer(network: torch.nn.Module, file: Path, layer: str | None) -> None:
    """Export as a user does, progress and all."""
    import torch

    from onnxplain_export import export

    export(network, torch.zeros(1, 3, SIZE, SIZE), file, layer=layer)


if __name__ == "__main__":
    main()
