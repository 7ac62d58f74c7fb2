"""Rows for `onnxplain_export.rules.pooling`."""

from __future__ import annotations

import numpy as np

from rule_cases.case import B, Case, H, W, ints, refused, row, x

WINDOWS: list[tuple[str, dict[str, object]]] = [
    ("strided, padded", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("ceil", {"kernel_shape": [3, 2], "strides": [2, 4], "ceil_mode": 1}),
    ("ceil, padded", {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1}),
    (
        "ceil, dilated",
        {
            "kernel_shape": [2, 2],
            "strides": [3, 3],
            "dilations": [2, 3],
            "pads": [1, 1, 0, 1],
            "ceil_mode": 1,
        },
    ),
    (
        "ceil, no window begins behind the input",
        {"kernel_shape": [2, 2], "strides": [4, 3], "pads": [0, 1, 1, 1], "ceil_mode": 1},
    ),
    ("ceil, asymmetric", {"kernel_shape": [4, 3], "strides": [3, 4], "pads": [2, 0, 0, 2], "ceil_mode": 1}),
]


def over_windows(operator: str, note: str, **attributes: object) -> list[Case]:
    return [
        row(operator, f"{note}{window}, {size}", x(B, 2, *shape), **attributes, **sliding)
        for size, shape in (("static size", (7, 6)), ("dynamic size", (H, W)))
        for window, sliding in WINDOWS
    ]


#: Where the maxima of windows of 2x2 stood in two images of two channels and 4x4 places.
UNPOOLED = np.array([1, 2, 12, 11], np.int64).reshape(2, 2) + 16 * np.arange(4).reshape(2, 2, 1, 1)

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
    row("MaxPool", "with indices", x(B, 2, 4, 5), kernel_shape=[2, 2], outputs=(True, False)),
    row(
        "MaxPool",
        "with indices, storage order 1",
        x(B, 2, 4, 5),
        kernel_shape=[2, 2],
        storage_order=1,
        outputs=(True, False),
    ),
    row("MaxPool", "storage order 1", x(B, 2, 4, 5), kernel_shape=[2, 2], storage_order=1),
    row("MaxPool", "dynamic size", x(B, 2, H, W), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    *[
        row(
            "MaxPool",
            f"{auto_pad}, strides {strides}",
            x(B, 2, 7, 6),
            kernel_shape=[3, 2],
            strides=strides,
            auto_pad=auto_pad,
        )
        for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for strides in ([1, 1], [3, 2])
    ],
    row(
        "MaxPool",
        "SAME_UPPER, dynamic size",
        x(B, 2, H, W),
        kernel_shape=[3, 3],
        strides=[2, 2],
        auto_pad="SAME_UPPER",
    ),
    row("GlobalMaxPool", "2-D", x(B, 3, 4, 5)),
    row("GlobalMaxPool", "1-D", x(B, 3, 4)),
    row("GlobalMaxPool", "3-D", x(B, 3, 2, 3, 2)),
    row("GlobalMaxPool", "dynamic size", x(B, 3, H, W)),
    row("MaxUnpool", "2-D", x(2, 2, 2, 2), UNPOOLED, kernel_shape=[2, 2], strides=[2, 2]),
    row(
        "MaxUnpool",
        "into a given shape",
        x(2, 2, 2, 2),
        UNPOOLED,
        ints(2, 2, 5, 4),
        kernel_shape=[2, 2],
        strides=[2, 2],
    ),
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
    *over_windows("AveragePool", ""),
    *over_windows("AveragePool", "pads counted, ", count_include_pad=1),
    row("AveragePool", "1-D, ceil", x(B, 2, 8), kernel_shape=[3], strides=[2], ceil_mode=1),
    row("AveragePool", "3-D, ceil", x(B, 1, 3, 4, 2), kernel_shape=[2, 3, 1], strides=[2, 2, 1], ceil_mode=1),
    row("AveragePool", "dynamic size, no pads", x(B, 2, H, W), kernel_shape=[3, 2], strides=[2, 2]),
    *[
        row(
            operator,
            f"{auto_pad}, strides {strides}, {others or 'defaults'}",
            x(B, 2, 7, 6),
            kernel_shape=[3, 2],
            strides=strides,
            auto_pad=auto_pad,
            **others,
        )
        for operator, others in (
            ("AveragePool", {}),
            ("AveragePool", {"count_include_pad": 1}),
            ("LpPool", {}),
        )
        for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for strides in ([1, 1], [3, 2])
    ],
    refused(
        "AveragePool",
        "AveragePool that pads by a size that is only known at run time .*",
        x(B, 2, H, W),
        kernel_shape=[3, 3],
        strides=[2, 2],
        auto_pad="SAME_UPPER",
    ),
    *[
        refused(operator, "with auto_pad, and dilations or strides with gaps", x(B, 2, 7, 6), **attributes)
        for operator, attributes in (
            ("AveragePool", {"kernel_shape": [2, 2], "dilations": [1, 2], "auto_pad": "SAME_UPPER"}),
            ("LpPool", {"kernel_shape": [1, 1], "strides": [1, 3], "auto_pad": "SAME_LOWER"}),
        )
    ],
    *[case for p in (1, 2, 3) for case in over_windows("LpPool", f"p = {p}, ", p=p)],
    row("LpPool", "1-D", x(B, 2, 9), kernel_shape=[3], strides=[2]),
    row("LpPool", "3-D", x(B, 2, 4, 5, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2]),
    *[
        row("GlobalLpPool", f"p = {p}, {note}", x(B, 2, *shape), p=p)
        for p in (1, 2, 3)
        for note, shape in (("1-D", (5,)), ("2-D", (3, 4)), ("3-D", (2, 3, 2)), ("dynamic size", (H, W)))
    ],
    row("GlobalAveragePool", "2-D", x(B, 3, 4, 5)),
    row("GlobalAveragePool", "1-D", x(B, 3, 4)),
    row("GlobalAveragePool", "3-D", x(B, 3, 2, 3, 2)),
]
