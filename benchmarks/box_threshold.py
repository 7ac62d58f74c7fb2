"""At which threshold do boxes fit best? `python benchmarks/box_threshold.py MODEL.onnx ... PICTURES BOXES`.

A map's box is that of its largest region hotter than a fraction of its hottest pixel, the threshold of
`Explanation.boxes`. For each model and method the table has the mean IoU with the boxes in BOXES (a file as
`onnxplain evaluate` takes it), and the share of the maps where it is 0.5 or more, at each threshold; the best
is in bold. The class explained is the box's own, or the predicted one where it names none.

The three networks that come with onnxplain, on their 1000 test scenes:

    python -m onnxplain_models.scene_files scenes
    python benchmarks/box_threshold.py models/onnxplain_models/explainers/*.onnx scenes scenes/boxes.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxplain import Explainer
from onnxplain.localization import Annotation, assign, box_overlap, read_boxes

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
METHODS = ("gradcam", "gradcam++", "layercam", "hirescam", "eigencam")


def main() -> None:
    """Measure each model by each method, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help="a folder")
    parser.add_argument("boxes", type=Path, metavar="BOXES", help="a CSV file, or JSON in COCO's format")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args()
    paths = sorted(path for path in options.pictures.rglob("*") if path.is_file() and path != options.boxes)
    annotated = {paths[number]: found for number, found in assign(read_boxes(options.boxes), paths).items()}
    print(f"{len(annotated)} pictures; mean IoU / share with an IoU of 0.5 or more, at each threshold:\n")
    print_row(["network", "method", *(f"{threshold:.0%}" for threshold in THRESHOLDS)])
    print_row(["---", "---", *["---:"] * len(THRESHOLDS)])
    for model in options.models:
        explainer = Explainer(model, threads=1)
        for method in options.methods:
            overlaps = measure(explainer, method, annotated)
            print_row([model.stem, f"`{method}`", *cells(overlaps)])


def measure(
    explainer: Explainer, method: str, annotated: dict[Path, list[Annotation]]
) -> NDArray[np.float64]:
    """Return the IoU of each map's box, at each threshold, [maps, thresholds]."""
    overlaps = []
    for path, drawn in annotated.items():
        for target in dict.fromkeys(one.label for one in drawn):
            regions = [one.region for one in drawn if one.label == target]
            explanation = explainer.explain(path, target, method)
            overlaps.append([box_overlap(explanation.boxes(least), regions) for least in THRESHOLDS])
    return np.array(overlaps)


def cells(overlaps: NDArray[np.float64]) -> list[str]:
    """Return mean and share at each threshold, the best of each in bold."""
    means, shares = overlaps.mean(axis=0), (overlaps >= 0.5).mean(axis=0)
    return [f"{mean} / {share}" for mean, share in zip(bold(means), bold(shares), strict=True)]


def bold(values: NDArray[np.float64]) -> list[str]:
    """Return numbers as text, the largest in bold."""
    return [f"**{value:.2f}**" if value == values.max() else f"{value:.2f}" for value in values]


def print_row(row: Sequence[str]) -> None:
    print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
