"""Rows for `onnxplain_export.rules.reductions`."""

from __future__ import annotations

from rule_cases.case import B, ints, row, x

CASES = [
    *[
        row(operator, note, x(B, 3, 4, 2), axes, **attributes)
        for operator in ("ReduceMean", "ReduceSum")
        for note, axes, attributes in [
            ("space", ints(2, 3), {}),
            ("space, axes dropped", ints(2, 3), {"keepdims": 0}),
            ("negative axes, unordered, dropped", ints(-1, -3), {"keepdims": 0}),
            ("one axis in the middle, dropped", ints(2), {"keepdims": 0}),
            ("over the batch", ints(0, 2), {"keepdims": 0}),
            ("all", None, {}),
            ("all, dropped", None, {"keepdims": 0}),
            ("empty axes: all", ints(), {}),
            ("empty axes: none", ints(), {"noop_with_empty_axes": 1}),
            ("no axes: none", None, {"noop_with_empty_axes": 1, "keepdims": 0}),
        ]
    ],
]
