"""Rows for `onnxplain_export.rules.linear`."""

from __future__ import annotations

from rule_cases.case import B, refused, row, weights, x

CASES = [
    row("MatMul", "constant on the right", x(B, 4), weights(4, 3)),
    row("MatMul", "constant on the left", weights(5, 3), x(B, 3, 4)),
    row("MatMul", "3-D by 2-D", x(B, 3, 4), x(4, 2)),
    row("MatMul", "2-D by 3-D", x(3, 4), x(B, 4, 2)),
    row("MatMul", "attention", x(B, 2, 3, 4), x(B, 2, 4, 3)),
    row("MatMul", "broadcast batches", x(B, 1, 3, 4), x(5, 4, 2)),
    row("MatMul", "inner size 1", x(B, 3, 1), x(B, 1, 4)),
    row("MatMul", "outer size 1", x(B, 1, 4), x(4, 1)),
    refused("MatMul", "with a vector", x(B, 4), x(4)),
    refused("MatMul", "MatMul with a vector", x(4), x(B, 4, 2)),
    row("Gemm", "plain", x(B, 4), x(4, 3), x(3)),
    row("Gemm", "no bias", x(B, 4), x(4, 3)),
    row("Gemm", "linear layer", x(B, 4), weights(3, 4), weights(3), transB=1),
    row("Gemm", "transB, alpha, beta", x(B, 4), x(3, 4), x(1, 3), transB=1, alpha=0.5, beta=-2.0),
    row("Gemm", "transA", x(4, 2), x(4, 3), x(2, 1), transA=1, beta=3.0),
    row("Gemm", "transA, transB, alpha", x(4, 2), x(3, 4), x(2, 3), transA=1, transB=1, alpha=1.5),
    row("Gemm", "scalar bias", x(B, 4), x(4, 3), x()),
    row("Gemm", "bias of shape [1]", x(B, 4), x(4, 3), x(1)),
    row("Gemm", "inner size 1", x(B, 1), x(3, 1), transB=1),
]
