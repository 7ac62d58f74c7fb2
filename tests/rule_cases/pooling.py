"""Rows for `onnxplain_export.rules.pooling`."""

from __future__ import annotations

from rule_cases.case import B, refused, row, x

CASES = [
    row("MaxPool", "2x2", x(B, 3, 6, 4), kernel_shape=[2, 2], strides=[2, 2]),
    row(
        "MaxPool",
        "3x3, stride 2, padded, overlapping",
        x(B, 2, 7, 6),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    ),
    row("MaxPool", "stride 1", x(B, 2, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    row("MaxPool", "ceil", x(B, 2, 6, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    row("MaxPool", "asymmetric pads", x(B, 2, 5, 5), kernel_shape=[3, 2], strides=[2, 2], pads=[0, 1, 2, 0]),
    row("MaxPool", "dilated", x(B, 2, 7, 7), kernel_shape=[2, 3], dilations=[3, 2]),
    row("MaxPool", "1-D", x(B, 2, 9), kernel_shape=[3], strides=[2]),
    row("MaxPool", "3-D", x(B, 2, 4, 4, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2]),
    refused("MaxPool", "storage order 1", x(B, 2, 4, 4), kernel_shape=[2, 2], storage_order=1),
    row("AveragePool", "2x2", x(B, 3, 6, 4), kernel_shape=[2, 2], strides=[2, 2]),
    row("AveragePool", "identity", x(B, 3, 2, 2), kernel_shape=[1, 1]),
    row("AveragePool", "1x1, stride 2", x(B, 3, 5, 4), kernel_shape=[1, 1], strides=[2, 2]),
    row(
        "AveragePool",
        "padded, pads not counted",
        x(B, 2, 6, 7),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    ),
    row(
        "AveragePool",
        "padded, pads counted",
        x(B, 2, 6, 7),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        count_include_pad=1,
    ),
    row("AveragePool", "asymmetric pads", x(B, 2, 5, 5), kernel_shape=[3, 2], pads=[0, 1, 2, 0]),
    row("AveragePool", "the last window falls short", x(B, 2, 8, 7), kernel_shape=[2, 2], strides=[3, 3]),
    row("AveragePool", "dilated", x(B, 2, 7, 8), kernel_shape=[2, 3], dilations=[2, 2]),
    row("AveragePool", "1-D, padded", x(B, 2, 9), kernel_shape=[3], strides=[2], pads=[1, 0]),
    row("AveragePool", "3-D", x(B, 2, 4, 5, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2]),
    refused("AveragePool", "ceil_mode", x(B, 2, 6, 6), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    row("GlobalAveragePool", "2-D", x(B, 3, 4, 5)),
    row("GlobalAveragePool", "1-D", x(B, 3, 4)),
    row("GlobalAveragePool", "3-D", x(B, 3, 2, 3, 2)),
]
