"""The metrics of `onnxplain evaluate`: their names, and which way is better. No numpy, for help's sake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CONTROL = "random"
"""The method that all are compared with: maps of noise."""


@dataclass(frozen=True)
class Metric:
    """A metric of `onnxplain.faithfulness` or `onnxplain.localization`, of one map."""

    title: str
    more_is_better: bool
    predictions: int = 0
    """That it takes of each map; the two of `drop` and `increase` are the same."""
    needs_boxes: bool = False


METRICS: Mapping[str, Metric] = {
    "road": Metric("ROAD", more_is_better=True, predictions=18),
    "insertion": Metric("insertion", more_is_better=True, predictions=101),
    "deletion": Metric("deletion", more_is_better=False, predictions=101),
    "drop": Metric("average drop", more_is_better=False, predictions=1),
    "increase": Metric("increase in confidence", more_is_better=True, predictions=1),
    "pointing": Metric("pointing game", more_is_better=True, needs_boxes=True),
    "energy": Metric("energy in the boxes", more_is_better=True, needs_boxes=True),
    "iou": Metric("box overlap (IoU)", more_is_better=True, needs_boxes=True),
}
