"""Guided backpropagation: the rules in which the backward pass of a ReLU is one itself."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxplain_export.rules.activations import relu
from onnxplain_export.rules.registry import RULES, Entry, Op


def guided_relu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Return the gradient where both y and it are positive (Springenberg et al. 2015, section 3.4)."""
    return op.Relu(relu(op, node, wrt, gradient))


GUIDED_RULES: Mapping[str, Entry] = {**RULES, "Relu": Entry(guided_relu)}
