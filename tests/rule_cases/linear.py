"""Rows for `onnxplain_export.rules.linear`."""

from __future__ import annotations

from rule_cases.case import B, fed, ints, refused, row, weights, x

WINDOWS = {"pads": [1, 2, 2, 1], "strides": [2, 1], "dilations": [2, 2]}

CASES = [
    row("MatMul", "constant on the right", x(B, 4), weights(4, 3)),
    row("MatMul", "constant on the left", weights(5, 3), x(B, 3, 4)),
    row("MatMul", "3-D by 2-D", x(B, 3, 4), x(4, 2)),
    row("MatMul", "2-D by 3-D", x(3, 4), x(B, 4, 2)),
    row("MatMul", "attention", x(B, 2, 3, 4), x(B, 2, 4, 3)),
    row("MatMul", "broadcast batches", x(B, 1, 3, 4), x(5, 4, 2)),
    row("MatMul", "inner size 1", x(B, 3, 1), x(B, 1, 4)),
    row("MatMul", "outer size 1", x(B, 1, 4), x(4, 1)),
    row("MatMul", "matrix by vector", x(B, 4), x(4)),
    row("MatMul", "matrices by vector", x(B, 3, 5, 4), x(4)),
    row("MatMul", "vector by matrices", x(4), x(B, 4, 2)),
    row("MatMul", "vector by matrix", x(3), x(3, 5)),
    row("MatMul", "vector of size 1 by matrices", x(1), x(B, 1, 2)),
    row("MatMul", "vectors", x(4), x(4)),
    row("MatMul", "matrix by constant vector", x(B, 3, 4), weights(4)),
    row("MatMul", "square weights", x(B, 3, 4), weights(4, 4)),
    row("MatMul", "square weights on the left", weights(4, 4), x(B, 4, 3)),
    row("MatMul", "stacked square weights", x(B, 2, 3, 4), weights(2, 4, 4)),
    row("Gemm", "square weights", x(B, 4), weights(4, 4), weights(4)),
    row("Gemm", "square weights, transB", x(B, 4), weights(4, 4), weights(4), transB=1),
    row("Gemm", "plain", x(B, 4), x(4, 3), x(3)),
    row("Gemm", "no bias", x(B, 4), x(4, 3)),
    row("Gemm", "rows of a known number", x(5, 4), x(4, 3), x(5, 1)),
    row("Gemm", "linear layer", x(B, 4), weights(3, 4), weights(3), transB=1),
    row("Gemm", "transB, alpha, beta", x(B, 4), x(3, 4), x(1, 3), transB=1, alpha=0.5, beta=-2.0),
    row("Gemm", "transA", x(4, 2), x(4, 3), x(2, 1), transA=1, beta=3.0),
    row("Gemm", "transA, transB, alpha", x(4, 2), x(3, 4), x(2, 3), transA=1, transB=1, alpha=1.5),
    row("Gemm", "scalar bias", x(B, 4), x(4, 3), x()),
    row("Gemm", "bias of shape [1]", x(B, 4), x(4, 3), x(1)),
    row("Gemm", "inner size 1", x(B, 1), x(3, 1), transB=1),
    row("Col2Im", "no overlap", x(B, 8, 6), ints(4, 6), ints(2, 2), strides=[2, 2]),
    row("Col2Im", "overlap", x(B, 12, 6), ints(4, 3), ints(2, 2)),
    row("Col2Im", "pads, strides, dilations", x(B, 18, 15), ints(7, 6), ints(3, 3), **WINDOWS),
    row("Col2Im", "1-D", x(B, 6, 4), ints(6), ints(3)),
    row("Col2Im", "3-D", x(B, 8, 8), ints(3, 4, 2), ints(2, 2, 1), strides=[1, 2, 1]),
    row("Col2Im", "the image's shape computed", x(B, 12, 6), fed(4, 3), ints(2, 2)),
    refused("Col2Im", "block shape is only known at run time", x(B, 12, 6), ints(4, 3), fed(2, 2)),
]
