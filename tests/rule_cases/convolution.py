"""Rows for `onnxplain_export.rules.convolution`."""

from __future__ import annotations

from rule_cases.case import B, refused, row, weights, x

CASES = [
    row("Conv", "3x3, stride 1", x(B, 3, 6, 5), weights(4, 3, 3, 3), weights(4), pads=[1, 1, 1, 1]),
    row("Conv", "1x1", x(B, 3, 4, 4), weights(5, 3, 1, 1)),
    row("Conv", "1x1, stride 2, even size", x(B, 3, 6, 6), weights(5, 3, 1, 1), strides=[2, 2]),
    row(
        "Conv",
        "7x7, stride 2: the last window falls short of the end",
        x(B, 2, 12, 11),
        weights(3, 2, 7, 7),
        pads=[3, 3, 3, 3],
        strides=[2, 2],
    ),
    row("Conv", "stride 3 leaves two places over", x(B, 2, 10, 9), weights(3, 2, 2, 2), strides=[3, 3]),
    row("Conv", "asymmetric pads", x(B, 2, 5, 6), weights(3, 2, 3, 2), pads=[2, 0, 1, 1]),
    row(
        "Conv",
        "asymmetric pads, stride 2",
        x(B, 2, 7, 6),
        weights(3, 2, 3, 3),
        pads=[0, 1, 2, 0],
        strides=[2, 1],
    ),
    row("Conv", "pads wider than the window", x(B, 2, 4, 4), weights(3, 2, 2, 2), pads=[3, 1, 1, 2]),
    row("Conv", "dilated", x(B, 2, 9, 8), weights(3, 2, 3, 3), dilations=[2, 3], pads=[2, 1, 2, 3]),
    row(
        "Conv",
        "dilated, stride 2",
        x(B, 2, 9, 10),
        weights(3, 2, 3, 2),
        dilations=[2, 2],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    ),
    row("Conv", "groups", x(B, 4, 5, 5), weights(6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    row("Conv", "groups, 1x1", x(B, 4, 3, 3), weights(6, 2, 1, 1), group=2),
    row(
        "Conv",
        "depthwise, stride 2",
        x(B, 4, 6, 7),
        weights(4, 1, 3, 3),
        group=4,
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    ),
    row("Conv", "depthwise, two filters a channel", x(B, 3, 5, 5), weights(6, 1, 3, 3), group=3),
    row("Conv", "valid", x(B, 2, 5, 5), weights(3, 2, 3, 3), auto_pad="VALID"),
    row("Conv", "1-D", x(B, 3, 8), weights(4, 3, 3), pads=[1, 1]),
    row("Conv", "1-D, stride 2", x(B, 3, 8), weights(4, 3, 3), strides=[2], pads=[1, 0]),
    row("Conv", "3-D", x(B, 2, 4, 3, 5), weights(3, 2, 2, 3, 2), pads=[0, 1, 1, 1, 1, 0]),
    row("Conv", "3-D, stride 2", x(B, 2, 4, 3, 5), weights(3, 2, 2, 3, 2), strides=[2, 1, 2]),
    row("Conv", "batch of 1 alone", x(1, 2, 4, 4), weights(3, 2, 3, 3)),
    refused("Conv", "weights depend on the layer", x(B, 2, 4, 4), x(3, 2, 3, 3)),
    refused("Conv", "auto_pad", x(B, 2, 4, 4), weights(3, 2, 3, 3), auto_pad="SAME_UPPER"),
]
