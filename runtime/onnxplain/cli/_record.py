"""The record of what was explained, one JSON object a picture, and the table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxplain.cli._explained import Asked, Explained, Finding
from onnxplain.cli._text import table

RECORD = "explanations.jsonl"


def record(model: Path, done: Explained, asked: Asked) -> str:
    """Return what is recorded of a picture; boxes are (x0, y0, x1, y1) in its pixels, the largest first.

    With several methods, the classes come once for each, the first method's first. What was asked beyond
    classes and method is there where it was.
    """
    first = done.findings[0]
    return json.dumps(
        {
            "path": str(done.path),
            "model": str(model),
            "method": first.method,
            "layer": first.layer,
            **{name: True for name, value in asked.options.items() if value is True},
            "classes": [_entry(one, several=len(asked.methods) > 1) for one in done.findings],
        },
        allow_nan=False,
    )


def _entry(one: Finding, *, several: bool) -> dict[str, Any]:
    return {
        "index": one.index,
        "label": one.label,
        **({"method": one.method, "layer": one.layer} if several else {}),
        "logit": one.logit,
        "probability": one.probability,
        "boxes": one.boxes,
        "overlay": one.overlay and one.overlay.as_posix(),
    }


def summary(pictures: Sequence[Explained], asked: Asked) -> str:
    """Return the table of all classes of all pictures."""
    several = len(asked.methods) > 1
    headers = [
        "PICTURE",
        *(["METHOD"] if several else []),
        "CLASS",
        "PROBABILITY",
        *(["OVERLAY"] if asked.overlays else []),
    ]
    rows = [
        [
            str(done.path),
            *([one.method] if several else []),
            one.name,
            one.percentage,
            *([str(asked.overlays / one.overlay)] if asked.overlays and one.overlay else []),
        ]
        for done in pictures
        for one in done.findings
    ]
    return table(headers, rows, right=[headers.index("PROBABILITY")])
