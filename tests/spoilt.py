"""Explainers with a fault in them, which their verification is to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def enlarge_backward_kernel(path: Path) -> None:
    """Make the kernel of a backward convolution a hundredth larger."""
    proto = onnx.load(path)
    nodes = proto.graph.node
    makers = {output: node.op_type for node in nodes for output in node.output}
    place, conv = next(
        (place, node)
        for place, node in enumerate(nodes)
        if node.op_type == "Conv" and makers.get(node.input[1]) in ("Reshape", "Slice", "Transpose")
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1.01, np.float32), "larger"))
    enlarging = helper.make_node("Mul", [conv.input[1], "larger"], ["larger_kernel"], name="enlarging")
    conv.input[1] = "larger_kernel"
    nodes.insert(place, enlarging)
    onnx.save(proto, path)
