"""Rows for `onnxplain_export.rules.cropping`."""

from __future__ import annotations

import numpy as np

from rule_cases.case import B, Case, H, Input, W, fed, ints, number, row, x

HUGE = 2**63 - 1
COPIES = ("reflect", "edge", "wrap")


def copied(note: str, shape: tuple[int | str, ...], *inputs: Input) -> list[Case]:
    return [row("Pad", f"{mode}, {note}", x(*shape), *inputs, mode=mode) for mode in COPIES]


CASES = [
    row("Slice", "beyond both ends", x(B, 6), ints(-9), ints(HUGE), ints(1)),
    row("Slice", "first part", x(B, 6, 3), ints(0), ints(2), ints(1)),
    row("Slice", "negative start, huge end", x(B, 6, 3), ints(-2), ints(HUGE), ints(-2)),
    row("Slice", "two axes, no axes named", x(4, 6), ints(1, 2), ints(3, -1)),
    row("Slice", "int32", x(B, 6), *(np.array([value], np.int32) for value in (1, 5, -1))),
    row("Slice", "steps", x(B, 7, 5), ints(1, 0), ints(7, 5), ints(1, 2), ints(2, 3)),
    row("Slice", "backwards", x(B, 7), ints(-1), ints(-(2**62)), ints(1), ints(-1)),
    row("Slice", "backwards in steps", x(B, 7, 2), ints(10), ints(0), ints(1), ints(-2)),
    row("Slice", "backwards and forwards", x(B, 5, 6), ints(3, 1), ints(-6, 5), ints(1, 2), ints(-1, 1)),
    row("Slice", "along the batch", x(B, 3), ints(-1), ints(2**62), ints(0)),
    row("Slice", "along the batch in steps", x(B, 3), ints(-1), ints(-(2**62)), ints(0), ints(-1)),
    row("Slice", "dynamic sizes", x(B, 2, H, W), ints(1, -3), ints(HUGE, -1), ints(2, 3)),
    row("Slice", "dynamic sizes in steps", x(B, H, W), ints(1, -1), ints(HUGE, -9), ints(1, 2), ints(2, -2)),
    row("Slice", "ends computed", x(B, 6, 5), ints(0, 1), fed(4, -1), ints(1, 2)),
    row("Slice", "starts computed", x(B, 6, 5), fed(-2, 9), ints(HUGE, 0), ints(1, 2), ints(1, -2)),
    row("Slice", "axes computed", x(B, 6, 5), ints(1, 1), ints(4, -1), fed(1, -1)),
    row("Slice", "steps computed", x(B, 6, 5), ints(1, 4), ints(6, 0), ints(1, -1), fed(2, -1)),
    row("Slice", "all", x(B, 3), ints(0), ints(3), ints(1)),
    row("Pad", "zeros", x(B, 3, 4), ints(0, 1, 2, 0, 0, 1)),
    row("Pad", "axes named, a value", x(B, 3, 4), ints(2, 1), number(7), ints(-1)),
    row("Pad", "negative: a crop", x(B, 3, 6), ints(0, 0, -1, 0, 2, -2)),
    row("Pad", "more before, less behind", x(B, 3, 6), ints(0, 1, 2, 0, -1, -3)),
    row("Pad", "nothing", x(B, 3), ints(0, 0, 0, 0)),
    row("Pad", "dynamic sizes", x(B, 2, H, W), ints(1, 0, 2, 3), None, ints(2, 3)),
    row("Pad", "widths computed", x(B, 3, 4), fed(0, 1, -1, 0, 0, 2)),
    row("Pad", "axes computed", x(B, 3, 4), ints(2, -1, 1, 0), None, fed(1, -1)),
    row("Pad", "the value", x(B, 3, 4), ints(1, 2, 0, 1), x(), ints(1, 2)),
    *copied("two axes", (B, 2, 4, 5), ints(2, 1, 1, 3), None, ints(2, 3)),
    *copied("an axis before others", (B, 4, 2, 3), ints(3, 1), None, ints(1)),
    *copied("dynamic sizes", (B, 2, H, W), ints(2, 1, 1, 3), None, ints(2, 3)),
    *copied("widths computed", (B, 2, 4), fed(0, 0, 2, 0, 0, 1)),
    *copied("axes computed", (B, 4, 5), ints(2, 1, 1, 3), None, fed(-1, 1)),
]
