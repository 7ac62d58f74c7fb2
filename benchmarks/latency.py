"""What an explanation costs, in time and memory, against the plain prediction and PyTorch's libraries.

`python benchmarks/latency.py` times torchvision's networks (every parameter redrawn) at their automatic
layers: the plain model in onnxruntime, and the explainer with no class, one class and five. `--networks
resnet50 resnet50:layer4.0` names others, with a layer where it isn't the automatic one; `--batch 8` takes
more images; `--libraries` adds grad-cam, torchcam and captum (`pip install -c constraints.txt ".[bench]"`).

`--plot FILE` draws them.

Each contender has a process of its own, and they take turns. Printed is the median latency, and the ratio to
the plain prediction: the median over rounds, with its quartiles.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from contenders import Contender, Timing, race
from networks import CNNS, TRANSFORMERS, Files, export_files

from onnxplain.bench import machine

PLAIN = "plain"
CLASSES = {"no class": 0, "one class": 1, "five classes": 5}
LIBRARIES = ("grad-cam", "torchcam", "captum")
PACKAGES = ("onnxplain", "onnxruntime", "torch", *LIBRARIES)


def main() -> None:
    """Export the files, time the contenders of each network in turn, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=[*CNNS, *TRANSFORMERS], metavar="NETWORK[:LAYER]")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="that a contender runs in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--libraries", action="store_true", help="time PyTorch's libraries too")
    parser.add_argument(
        "--plot", type=Path, help="picture file for the ratios of one class and the libraries"
    )
    parser.add_argument("--folder", type=Path, help="keep the exported files here, and take those that are")
    options = parser.parse_args()
    libraries = LIBRARIES if options.libraries else ()
    print(measured_with(options.threads, PACKAGES))
    print_row(["network", "plain, ms", *CLASSES, "memory", *libraries])
    print_row(["---", *["---:"] * (2 + len(CLASSES) + len(libraries))])
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for spec in options.networks:
            files = export_files(spec, folder)
            field = contenders(spec.partition(":")[0], files, options, libraries)
            timings = race(field, options.rounds, options.seconds)
            print_row(cells(spec, timings))
            ratios[spec] = [timings[name].ratio(timings[PLAIN])[1] for name in [*CLASSES, *libraries]]
    means = [f"{mean:.2f}" for mean in np.exp(np.log(list(ratios.values())).mean(axis=0))]
    print_row(["geometric mean", "", *means[: len(CLASSES)], "", *means[len(CLASSES) :]])
    if options.plot:
        draw(ratios, [*CLASSES, *libraries], options.plot)


def measured_with(threads: int, packages: Iterable[str]) -> str:
    """Say what the table was measured with; packages that aren't installed are left out."""
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    processor = machine()["processor"]
    return f"{processor}, {threads} threads; Python {platform.python_version()}, {', '.join(versions)}\n"


def contenders(
    network: str, files: Files, options: argparse.Namespace, libraries: Iterable[str]
) -> dict[str, Contender]:
    """Return what is timed of a network, by name."""

    def on_file(path: Path, classes: int) -> Contender:
        return Contender("file", str(path), options.batch, options.threads, classes)

    field = {PLAIN: on_file(files.plain, 0)}
    field |= {name: on_file(files.explainer, classes) for name, classes in CLASSES.items()}
    layer = files.layer
    field |= {
        name: Contender(name, network, options.batch, options.threads, layer=layer) for name in libraries
    }
    return field


def cells(spec: str, timings: dict[str, Timing]) -> list[str]:
    """Return a network's row."""
    plain = timings[PLAIN]
    memory = timings["one class"].peak / max(plain.peak, 1)
    row = [spec, f"{1e3 * plain.median:.1f}", *(ratio(timings[name], plain) for name in CLASSES)]
    return [*row, f"{memory:.2f}", *(ratio(timings[name], plain) for name in LIBRARIES if name in timings)]


def ratio(timing: Timing, plain: Timing) -> str:
    """Return a ratio with its quartiles."""
    low, middle, high = timing.ratio(plain)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def draw(ratios: dict[str, list[float]], names: Sequence[str], path: Path) -> None:
    """Draw what one explanation costs, times the plain prediction, for each network."""
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    shown = ["one class", *(name for name in LIBRARIES if name in names)]
    figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    places, width = np.arange(len(ratios)), 0.8 / len(shown)
    colours = ["#b5367a", "#9aa5b1", "#6b7683", "#c9d1d9"]
    for number, (name, colour) in enumerate(zip(shown, colours, strict=False)):
        heights = [row[names.index(name)] for row in ratios.values()]
        label = "onnxplain" if name == "one class" else name
        axes.bar(places + (number - (len(shown) - 1) / 2) * width, heights, width, label=label, color=colour)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_yticks([1, 2, 5, 10, 20])
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.set_ylim(0.8)
    axes.set_ylabel("times the plain prediction")
    axes.set_xticks(places, list(ratios), rotation=25, ha="right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(shown), loc="upper left", bbox_to_anchor=(0, 1.16))
    figure.savefig(path, dpi=130)


def print_row(row: Sequence[str]) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
