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
    needs_boxes: bool = False


METRICS: Mapping[str, Metric] = {
    "road": Metric("ROAD", more_is_better=True),
    "insertion": Metric("insertion", more_is_better=True),
    "deletion": Metric("deletion", more_is_better=False),
    "drop": Metric("average drop", more_is_better=False),
    "increase": Metric("increase in confidence", more_is_better=True),
    "pointing": Metric("pointing game", more_is_better=True, needs_boxes=True),
    "energy": Metric("energy in the boxes", more_is_better=True, needs_boxes=True),
    "iou": Metric("box overlap (IoU)", more_is_better=True, needs_boxes=True),
}
