"""What an explainer says about several classes of one picture, as a list that a notebook shows."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from typing import SupportsIndex, overload

import numpy as np

from onnxplain.explanation import Explanation, class_and_score
from onnxplain.opencv import cv2
from onnxplain.overlay import overlay

_SIDE, _MOST = 240, 24
"""Pixels of an overlay's longer side in a notebook, and how many are shown there, at most."""


class Explanations(list[Explanation]):
    """A list of explanations. A notebook shows their overlays in a row."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> Explanations: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Explanation | Explanations:
        """Return one of them, or some, which a notebook shows too."""
        return (
            Explanations(super().__getitem__(index))
            if isinstance(index, slice)
            else super().__getitem__(index)
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: each overlay above its class and probability, method and layer."""
        figures = [_figure(one) for one in self[:_MOST]]
        rest = [f"<p>and {len(self) - _MOST} more</p>"] * (len(self) > _MOST)
        row = "display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start"
        return f'<div style="{row}">{"".join([*figures, *rest])}</div>'


def _figure(one: Explanation) -> str:
    name, score = map(escape, class_and_score(one))
    data = b64encode(_small_overlay(one)).decode()
    return (
        f'<figure style="margin: 0; width: min-content; min-width: 140px; max-width: {_SIDE}px">'
        f'<img src="data:image/png;base64,{data}" alt="{name}" style="max-width: none; margin: 0">'
        f'<figcaption style="overflow-wrap: anywhere"><b>{name}</b> {score}<br>'
        f"{escape(one.method)}, {escape(one.layer)}</figcaption></figure>"
    )


def _small_overlay(one: Explanation) -> bytes:
    """Return an overlay in small, as PNG; it is made in small, for it may be one of many of a photograph."""
    scale = min(1.0, _SIDE / max(one.picture.size))
    height, width = (max(1, round(side * scale)) for side in one.picture.size)
    small = cv2.resize(one.picture.pixels, (width, height), interpolation=cv2.INTER_AREA)
    shown = overlay(np.asarray(small, np.uint8), one.heatmap_at((height, width)))
    return cv2.imencode(".png", cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))[1].tobytes()
