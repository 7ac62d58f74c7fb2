"""Rows for `onnxplain_export.rules.normalization`."""

from __future__ import annotations

import numpy as np

from rule_cases.case import B, H, W, positive, refused, row, weights, x

CASES = [
    *[
        row(
            "BatchNormalization",
            f"{len(shape)}-D",
            x(*shape),
            weights(3),
            weights(3),
            weights(3),
            np.abs(weights(3)) + 0.5,
            **attributes,
        )
        for shape, attributes in [
            ((B, 3), {}),
            ((B, 3, 5), {"epsilon": 0.1}),
            ((B, 3, 4, 2), {}),
            ((B, 3, 2, 2, 2), {"epsilon": 1e-3}),
        ]
    ],
    row("BatchNormalization", "all computed", x(B, 3, 4), x(3), x(3), x(3), positive(3), epsilon=0.1),
    row("BatchNormalization", "all computed, 2-D", x(B, 3), x(3), x(3), x(3), positive(3)),
    refused(
        "BatchNormalization",
        "BatchNormalization in training mode",
        x(B, 3, 4),
        weights(3),
        weights(3),
        weights(3),
        np.abs(weights(3)) + 0.5,
        training_mode=1,
        outputs=(True, False, False),
    ),
    row("LayerNormalization", "last axis", x(B, 3, 6), weights(6), weights(6)),
    row("LayerNormalization", "no bias, epsilon", x(B, 6), weights(6), epsilon=0.5),
    row("LayerNormalization", "a scale for each place", x(B, 4, 3), weights(4, 3)),
    row("LayerNormalization", "axis 1", x(B, 3, 4), weights(3, 4), weights(3, 4), axis=1),
    row("LayerNormalization", "axis -3", x(B, 3, 2, 4), weights(3, 2, 4), axis=-3),
    row("LayerNormalization", "scale and bias computed", x(B, 3, 6), x(6), x(6)),
    row("LayerNormalization", "axis 1, scale computed", x(B, 3, 4), x(3, 4), axis=1),
    row("LayerNormalization", "dynamic size", x(B, 2, W), x(W), x(W)),
    row("LayerNormalization", "all outputs", x(B, 3, 6), x(6), x(6), outputs=(True, True, True)),
    row("LayerNormalization", "its mean", x(B, 3, 4), weights(3, 4), axis=1, outputs=(False, True)),
    row("LayerNormalization", "its deviation", x(B, 2, W), x(W), epsilon=0.1, outputs=(True, False, True)),
    *[
        row("InstanceNormalization", note, x(*shape), scale, bias, **attributes)
        for note, shape, scale, bias, attributes in [
            ("1-D", (B, 3, 5), weights(3), weights(3), {}),
            ("2-D", (B, 3, 4, 2), weights(3), weights(3), {"epsilon": 0.1}),
            ("3-D", (B, 3, 2, 3, 2), weights(3), weights(3), {}),
            ("dynamic size", (B, 3, H, W), weights(3), weights(3), {}),
            ("scale and bias computed", (B, 3, 4, 2), x(3), x(3), {}),
        ]
    ],
    *[
        row("GroupNormalization", note, x(*shape), scale, bias, num_groups=2, **attributes)
        for note, shape, scale, bias, attributes in [
            ("1-D", (B, 4, 5), weights(2), weights(2), {}),
            ("2-D", (B, 6, 4, 2), weights(2), weights(2), {"epsilon": 0.1}),
            ("3-D", (B, 4, 2, 3, 2), weights(2), weights(2), {}),
            ("dynamic size", (B, 4, H, W), weights(2), weights(2), {}),
            ("scale and bias computed", (B, 4, 4, 2), x(2), x(2), {}),
        ]
    ],
    # onnx's own shape inference fails where the axes are left out.
    row("MeanVarianceNormalization", "the default axes, named", x(B, 3, 4, 2), axes=[0, 2, 3]),
    row("MeanVarianceNormalization", "named axes", x(B, 3, 4, 2), axes=[1, -1]),
    *[
        row("LpNormalization", f"p = {p}, {note}", x(*shape), p=p, **attributes)
        for p in (1, 2)
        for note, shape, attributes in [
            ("last axis", (B, 3, 4), {}),
            ("channels", (B, 3, 4, 2), {"axis": 1}),
            ("axis -2", (B, H, W), {"axis": -2}),
        ]
    ],
    row("LRN", "defaults", positive(B, 6, 3, 4), size=5),
    row("LRN", "all attributes", x(B, 6, 3, 4), size=3, alpha=0.7, beta=0.6, bias=1.5),
    row("LRN", "dynamic size", x(B, 5, H, W), size=3, alpha=0.5, beta=0.5, bias=2.0),
    row("LRN", "wider than the channels", x(B, 3, 2, 2), size=7, alpha=0.9),
    refused("LRN", "LRN of even size", x(B, 6, 3, 4), size=4),
]
