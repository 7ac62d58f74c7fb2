"""How accurate the reference networks are, and how well their maps find the digit.

`python -m onnxplain_models.evaluate` explains the predicted class of test scenes with the exported
explainers, as any user of the runtime would. It needs scikit-learn for the scenes, but no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxplain import Explainer, Explanation, OnnxplainError
from onnxplain.localization import Region, box_overlap, intersection_over_union, pointing_game
from onnxplain_models.catalog import METHODS, NETWORKS, explainer_file
from onnxplain_models.scenes import SIZE, Scenes, make_scenes

_BATCH = 50


@dataclass(frozen=True)
class Scores:
    """How a network did on some scenes.

    Attributes
    ----------
    accuracy
        Share of the scenes whose digit it named.
    peak_in_box
        Share of the scenes whose heatmap is hottest inside the digit's box.
    mean_iou
        Intersection over union of the digit's box and the map's, averaged over the scenes. The map's box
        is that of its largest region above 20 % of its maximum, as in the CAM paper; 0 for a blank map.
    """

    accuracy: float
    peak_in_box: float
    mean_iou: float


def evaluate(explainer: Explainer, method: str, scenes: Scenes) -> Scores:
    """Explain the predicted class of each scene, right or wrong, and compare with the truth."""
    right, hits, overlaps = [], [], []
    boxes = [Region(*box) for box in scenes.boxes.tolist()]
    explanations = _explain(explainer, method, scenes.images)
    for explanation, label, box in zip(explanations, scenes.labels, boxes, strict=True):
        right.append(explanation.index == label)
        hits.append(pointing_game(explanation.heatmap, [box]))
        overlaps.append(box_overlap(explanation.boxes(), [box]))
    return Scores(float(np.mean(right)), float(np.mean(hits)), float(np.mean(overlaps)))


def _explain(explainer: Explainer, method: str, images: NDArray[np.uint8]) -> Iterator[Explanation]:
    for start in range(0, len(images), _BATCH):
        yield from explainer.explain_batch(list(images[start : start + _BATCH]), method=method)


def _area(box: Region) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def main() -> None:
    """Print a table with a row for each network, and one for guessing."""
    parser = argparse.ArgumentParser(prog="python -m onnxplain_models.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=1000, help="how many test scenes (default: 1000)")
    parser.add_argument("--explainers", type=Path, help="folder of the .onnx files (default: the package's)")
    arguments = parser.parse_args()
    if arguments.scenes < 1:
        parser.error(f"--scenes must be at least 1, not {arguments.scenes}")
    try:
        _print_table(make_scenes("test", arguments.scenes), arguments.explainers)
    except OnnxplainError as error:
        sys.exit(f"error: {error}")


def _print_table(scenes: Scenes, folder: Path | None) -> None:
    print(f"{len(scenes.labels)} test scenes\n")
    print("| network | map     | accuracy | peak in the digit's box | mean IoU |")
    print("|---------|---------|---------:|------------------------:|---------:|")
    for name in NETWORKS:
        with as_file(folder / f"{name}.onnx" if folder else explainer_file(name)) as path:
            scores = evaluate(Explainer(path), METHODS[name], scenes)
        print(
            f"| {name:7} | {METHODS[name]:7} | {scores.accuracy:8.1%} | {scores.peak_in_box:23.1%} "
            f"| {scores.mean_iou:8.2f} |"
        )
    boxes = [Region(*box) for box in scenes.boxes.tolist()]
    chance = float(np.mean([_area(box) for box in boxes])) / SIZE**2
    whole = float(np.mean([intersection_over_union(Region(0, 0, SIZE, SIZE), box) for box in boxes]))
    print(f"| chance  |         |    10.0% | {chance:23.1%} | {whole:8.2f} |")
    print("\nChance: any digit, a peak anywhere, the whole picture as the box.")


if __name__ == "__main__":
    main()
