"""Rows for `onnxplain_export.rules.reductions`."""

from __future__ import annotations

from rule_cases.case import B, H, W, X, between, fed, ints, positive, row, x


def drawn(operator: str, *shape: int | str) -> X:
    """Return an input of which a reduction's values and slopes are of moderate size."""
    if operator == "ReduceLogSum":
        return positive(*shape)
    return between(0.6, 1.6, *shape) if operator == "ReduceProd" else x(*shape)


CASES = [
    *[
        row(operator, note, drawn(operator, B, 3, 4, 2), axes, **attributes)
        for operator in (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        )
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
            ("axes fed", fed(-1, 1), {}),
            ("axes fed, none", fed(), {"noop_with_empty_axes": 1}),
        ]
    ],
    row("ReduceProd", "of both signs", x(B, 3, 4), ints(1)),
    *[
        row(operator, "dynamic size", drawn(operator, B, 2, H, W), ints(-2, -1), keepdims=0)
        for operator in ("ReduceL2", "ReduceMax", "ReduceMean")
    ],
]
