"""Rows for `onnxplain_export.rules.resampling`."""

from __future__ import annotations

import numpy as np

from graphs import Array
from rule_cases.case import B, Case, H, W, fed, ints, refused, row, x


def scales(*factors: float) -> Array:
    return np.array(factors, np.float32)


def resized(note: str, *inputs: Array | None, **attributes: object) -> Case:
    """A Resize of the last two of four axes, which `axes` may name in another order."""
    return row("Resize", note, x(B, 2, 6, 5), *inputs, **{"axes": [2, 3], **attributes})


COORDINATES = [
    "half_pixel",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "half_pixel_symmetric",
]

CASES = [
    *(
        resized(
            f"{mode}, {coordinates}, {name}", *given, mode=mode, coordinate_transformation_mode=coordinates
        )
        for mode in ("linear", "nearest")
        for coordinates in COORDINATES
        for name, given in {
            "twice as large": (None, scales(2, 2)),
            "scales": (None, scales(1.6, 0.7)),
            "sizes": (None, None, ints(9, 3)),
        }.items()
    ),
    # onnxruntime rounds where it looks; a cubic is steep, so these are scales that it needn't round.
    *(
        resized(
            f"cubic, {coordinates}, {name}", *given, mode="cubic", coordinate_transformation_mode=coordinates
        )
        for coordinates in COORDINATES
        for name, given in {
            "scales": (None, scales(2, 0.5)),
            "sizes": (None, None, ints(3, 10)),
        }.items()
    ),
    resized(
        "a single place",
        None,
        None,
        ints(1, 4),
        mode="linear",
        coordinate_transformation_mode="pytorch_half_pixel",
    ),
    resized("antialiased, linear", None, None, ints(3, 2), mode="linear", antialias=1),
    resized("antialiased, cubic", None, scales(0.5, 0.6), mode="cubic", antialias=1),
    resized("cubic, coefficient", None, scales(2, 4), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    *(
        resized(f"nearest, {rounding}", None, scales(1.5, 0.5), mode="nearest", nearest_mode=rounding)
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    row("Resize", "one axis alone", x(B, 2, 6, 5), None, scales(1, 1, 1, 2), mode="linear"),
    resized("axes", None, scales(2, 1.5), mode="linear", axes=[3, 2]),
    resized("axes from the end, sizes", None, None, ints(3, 8), mode="linear", axes=[-2, -1]),
    row("Resize", "sizes of all axes", x(2, 2, 6, 5), None, None, ints(2, 2, 3, 8), mode="linear"),
    row("Resize", "channels last", x(B, 4, 3, 2), None, scales(1, 2, 1.5, 1), mode="linear"),
    row("Resize", "1-D", x(B, 2, 5), None, scales(1, 1, 1.6), mode="linear"),
    row("Resize", "3-D", x(B, 2, 3, 2, 4), None, scales(1, 1, 2, 1.5, 0.5), mode="linear"),
    row("Resize", "any height and width", x(B, 2, H, W), None, scales(1, 1, 2, 1.5), mode="linear"),
    row(
        "Resize",
        "any height and width, to a size",
        x(B, 2, H, W),
        None,
        None,
        ints(4, 9),
        mode="linear",
        axes=[2, 3],
    ),
    row(
        "Resize",
        "any height and width, to a fed size",
        x(B, 2, H, W),
        None,
        None,
        fed(4, 9),
        mode="cubic",
        axes=[2, 3],
    ),
    row(
        "Resize",
        "any height and width, corners aligned",
        x(B, 2, H, W),
        None,
        None,
        fed(4, 9),
        mode="linear",
        axes=[-2, -1],
        coordinate_transformation_mode="align_corners",
    ),
    row("Resize", "any height and width, nearest", x(B, 2, H, W), None, scales(1, 1, 2, 0.5), mode="nearest"),
    refused(
        "Resize",
        "only known at run time",
        x(B, H, W, 2),
        None,
        scales(1, 2, 2, 1),
        mode="linear",
    ),
    refused(
        "Resize",
        "that keeps the aspect ratio",
        x(B, 2, 6, 5),
        None,
        None,
        ints(9, 9),
        axes=[2, 3],
        keep_aspect_ratio_policy="not_larger",
    ),
]
