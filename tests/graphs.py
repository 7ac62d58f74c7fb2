"""Small ONNX graphs written as text, their gradients, and two engines to evaluate them with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper, shape_inference
from onnxscript import GraphBuilder

from onnxplain_export.differentiate import differentiate
from onnxplain_export.reference_graph import Arrays, ReferenceGraph

Array = npt.NDArray[Any]


def gradient_name(target: str) -> str:
    return f"gradient.{target}"


def parse(text: str, opset: str = '"": 20', **constants: Array) -> ir.Model:
    """Make a model of a graph in ONNX's text format; arrays become constants by name."""
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{opset}]>\n{text}")
    return finished(proto, constants)


def finished(proto: onnx.ModelProto, constants: Arrays) -> ir.Model:
    """Add constants to a model, infer the shapes of all its values, and give each node a name."""
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    proto = shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    # The checker refuses GroupNormalization before opset 21, where its scale changed; onnxruntime runs both.
    if all(node.op_type != "GroupNormalization" for node in proto.graph.node):
        onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def value_named(model: ir.Model, name: str) -> ir.Value:
    graph = model.graph
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    return next(value for value in values if value.name == name)


def differentiated(model: ir.Model, *targets: str) -> ir.Model:
    """Add an int64 input ``classes`` [classes, batch], and gradients of the output ``logits`` as outputs."""
    graph = model.graph
    classes = ir.val("classes", dtype=ir.DataType.INT64, shape=["classes", "class_batch"])
    graph.inputs.append(classes)
    values = [value_named(model, target) for target in targets]
    op = GraphBuilder(graph).op
    gradients = differentiate(op, graph, value_named(model, "logits"), classes, values)
    for target, value, gradient in zip(targets, values, gradients, strict=True):
        output = op.Identity(gradient)
        output.name = gradient_name(target)
        output.dtype = value.dtype
        output.shape = ir.Shape(["classes", *(value.shape or ())])
        graph.outputs.append(output)
    return model


def in_float64(model: ir.Model, feeds: Arrays, outputs: list[str]) -> Arrays:
    """Evaluate with onnx's reference evaluator, from any values of the graph to any others."""
    return ReferenceGraph(model, list(feeds), outputs, {}).run(feeds)


def in_onnxruntime(model: ir.Model, feeds: Arrays, threads: int = 1) -> Arrays:
    """Evaluate all outputs in float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def numeric_gradient(model: ir.Model, feeds: Arrays, target: str, classes: Array) -> Array:
    """Return the gradients by central differences of the logits in float64, [classes, *target.shape].

    The images of a batch may depend on each other: as in the graph, the gradient is that of the sum of one
    logit an image.
    """
    forward = ReferenceGraph(model, list(feeds), ["logits"], {})
    point = feeds[target].astype(np.float64)
    gradient = np.zeros((len(classes), *point.shape))
    step = 1e-5
    for place in np.ndindex(point.shape):
        ends = []
        for sign in (1, -1):
            moved = point.copy()
            moved[place] += sign * step
            logits = forward.run({**feeds, target: moved})["logits"]
            ends.append(np.take_along_axis(logits, classes.T, axis=1).sum(axis=0))
        gradient[(slice(None), *place)] = (ends[0] - ends[1]) / (2 * step)
    return gradient
