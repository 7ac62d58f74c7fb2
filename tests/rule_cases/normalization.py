"""Rows for `onnxplain_export.rules.normalization`."""

from __future__ import annotations

import numpy as np

from rule_cases.case import B, refused, row, weights, x

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
    refused(
        "BatchNormalization",
        "statistics or scale depend on the layer",
        x(B, 3, 4),
        x(3),
        weights(3),
        weights(3),
        np.abs(weights(3)) + 0.5,
    ),
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
    row("LayerNormalization", "axis 1", x(B, 3, 4), weights(3, 4), weights(3, 4), axis=1),
    row("LayerNormalization", "axis -3", x(B, 3, 2, 4), weights(3, 2, 4), axis=-3),
    refused(
        "LayerNormalization",
        "of which more than the first output is used",
        x(B, 3, 6),
        weights(6),
        outputs=(True, True),
    ),
    refused("LayerNormalization", "scale or bias depends on the layer", x(B, 3, 6), x(6)),
]
