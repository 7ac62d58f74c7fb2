"""Make a graph's batch dynamic, and every shape in it as known as it can be."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxplain_export.files import save
from onnxplain_export.float64 import Array, Arrays
from onnxplain_export.graph import constant_ints, downstream, is_float, operand, static_dims
from onnxplain_export.onnx_file import run_model

# Their results are drawn anew each time, or are larger than what they are made of.
_NOT_FOLDED = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "DequantizeLinear",
}
# With so many images of noise the shapes are tried that inference leaves open.
_TRIED = (2, 3)


def infer_shapes(model: ir.Model) -> None:
    """Infer types and shapes with onnx, as far as it can."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    finally:
        logger.setLevel(level)


def run_graph(model: ir.Model, outputs: Sequence[str], feeds: Arrays) -> Arrays:
    """Run a model with onnxruntime, with any of its values as outputs."""
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph)
    copy.graph.outputs[:] = [values[name] for name in outputs]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        save(copy, file)
        return run_model(file, outputs, feeds)


def fold_constants(model: ir.Model) -> None:
    """Compute what doesn't depend on the input, so that shapes and axes are known to the rules."""
    graph = model.graph
    computed = downstream(graph, graph.inputs)
    foldable: list[ir.Node] = []
    folded: set[ir.Value] = set()
    for node in graph:
        is_constant = all(
            value is None or value in folded or value.const_value is not None for value in node.inputs
        )
        nested = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        if (
            node.op_type not in _NOT_FOLDED
            and node.domain in ("", "ai.onnx")
            and is_constant
            and not nested
            and computed.isdisjoint(node.outputs)
        ):
            foldable.append(node)
            folded.update(node.outputs)
    wanted = [
        value
        for node in foldable
        for value in node.outputs
        if value.name and any(use.node not in foldable for use in value.uses())
    ]
    if not wanted:
        return
    names = [str(value.name) for value in wanted]
    part = ir.convenience.extract(graph, [], names)
    results = run_graph(ir.Model(part, ir_version=model.ir_version), names, {})
    for value, name in zip(wanted, names, strict=True):
        constant = ir.val(f"{name}.folded", const_value=ir.tensor(results[name], name=f"{name}.folded"))
        graph.register_initializer(constant)
        ir.convenience.replace_all_uses_with(value, constant, replace_graph_outputs=False)
    graph.remove(
        [node for node in foldable if not any(v.is_graph_output() for v in node.outputs)], safe=False
    )


def free_batch(model: ir.Model, image: ir.Value, batch: int) -> None:
    """Make a static batch dynamic: in the input, and in the constants that repeat it.

    A Reshape to a constant shape, a Concat with a constant row and a Resize to constant sizes hold the batch
    fixed. Where in a Reshape's result the batch is, is read off its input, whose batch is known by then.
    What this can't see, a run of two images shows.
    """
    graph = model.graph
    infer_shapes(model)
    fixed = {value: static_dims(value) for node in graph for value in node.outputs}
    assert image.shape is not None
    image.shape = ir.Shape(["batch", *image.shape[1:]])
    computed = downstream(graph, [image])
    for value in fixed:
        if value in computed:
            value.shape = None
    waiting = [node for node in graph if node.op_type in _FREE and not computed.isdisjoint(node.outputs)]
    while True:
        infer_shapes(model)
        done = [node for node in waiting if _FREE[node.op_type](graph, node, fixed, batch)]
        if not done:
            return
        waiting = [node for node in waiting if node not in done]
        for value in computed:
            if not value.is_graph_input():
                value.shape = None


def _free_reshape(
    graph: ir.Graph, node: ir.Node, fixed: dict[ir.Value, list[int | None]], batch: int
) -> bool:
    target = constant_ints(node.inputs[1])
    source = static_dims(operand(node, 0))
    shape = [dim for dim in fixed[node.outputs[0]] if dim is not None]
    if target is None or source.count(None) != 1 or len(shape) != len(target):
        return False
    # The batch is where as many numbers come before it in the result as in the input.
    before = math.prod(dim or 1 for dim in source[: source.index(None)])
    axes = [axis for axis in range(len(shape)) if math.prod(shape[:axis]) == before]
    if not axes or shape[axes[0]] % batch or target[axes[0]] == -1:
        return False
    _replace_constant(graph, node, 1, [*shape[: axes[0]], -1, *shape[axes[0] + 1 :]])
    return True


def _free_concat(graph: ir.Graph, node: ir.Node, fixed: dict[ir.Value, list[int | None]], batch: int) -> bool:
    rank = len(fixed[node.outputs[0]])
    axis = node.attributes["axis"].as_int() % max(rank, 1)
    dynamic = [value for value in node.inputs if value is not None and None in static_dims(value)]
    repeated = [
        index
        for index, value in enumerate(node.inputs)
        if value is not None and value.const_value is not None and static_dims(value)[:1] == [1]
    ]
    if axis == 0 or not dynamic or not repeated or static_dims(dynamic[0])[0] is not None:
        return False
    shape = ir.node("Shape", [dynamic[0]], {"start": 0, "end": 1})
    graph.insert_before(node, shape)
    for index in repeated:
        value = operand(node, index)
        rest = _constant(graph, f"{node.outputs[0].name}.rest.{index}", static_dims(value)[1:])
        sizes = ir.node("Concat", [shape.outputs[0], rest], {"axis": 0})
        expanded = ir.node("Expand", [value, sizes.outputs[0]])
        graph.insert_before(node, [sizes, expanded])
        node.replace_input_with(index, expanded.outputs[0])
    return True


def _free_resize(graph: ir.Graph, node: ir.Node, fixed: dict[ir.Value, list[int | None]], batch: int) -> bool:
    sizes = constant_ints(node.inputs[3]) if len(node.inputs) > 3 else None
    if sizes is None or "axes" in node.attributes or sizes[0] != batch:
        return False
    node.attributes["axes"] = ir.AttrInt64s("axes", list(range(1, len(sizes))))
    _replace_constant(graph, node, 3, sizes[1:])
    return True


_FREE = {"Reshape": _free_reshape, "Concat": _free_concat, "Resize": _free_resize}


def _replace_constant(graph: ir.Graph, node: ir.Node, index: int, numbers: Sequence[int | None]) -> None:
    name = f"{node.outputs[0].name}.input.{index}"
    node.replace_input_with(index, _constant(graph, name, numbers))


def _constant(graph: ir.Graph, name: str, numbers: Sequence[int | None]) -> ir.Value:
    tensor = ir.tensor(np.array(numbers, np.int64), name=name)
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    return value


def complete_shapes(model: ir.Model, image: Array) -> None:
    """Fill in the types and dimensions that inference leaves open, from runs of two sizes of batch.

    A dimension that is the same in both is static.
    """
    open_values = [
        value
        for node in model.graph
        for value in node.outputs
        if value.name and (value.dtype is None or (is_float(value) and _is_open(value)))
    ]
    if not open_values:
        return
    names = [str(value.name) for value in open_values]
    first, second = (
        run_graph(model, names, {str(model.graph.inputs[0].name): np.resize(image, (size, *image.shape[1:]))})
        for size in _TRIED
    )
    for value, name in zip(open_values, names, strict=True):
        if not isinstance(first[name], np.ndarray):
            continue
        value.dtype = ir.DataType.from_numpy(first[name].dtype)
        if first[name].ndim == second[name].ndim:
            pairs = zip(first[name].shape, second[name].shape, strict=True)
            value.shape = ir.Shape(
                [("batch" if (a, b) == _TRIED else None) if a != b else a for a, b in pairs]
            )


def _is_open(value: ir.Value) -> bool:
    if value.shape is None:
        return True
    return any(not isinstance(dim, int) and dim.value != "batch" for dim in value.shape)
