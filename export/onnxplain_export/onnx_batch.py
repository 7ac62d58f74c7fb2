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
from onnxplain_export.graph import constant_ints, downstream, is_float, operand, static_dim, static_dims
from onnxplain_export.onnx_file import session_of
from onnxplain_export.rules.windows import Window, known_spatial_size, rounds_up

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


def infer_shapes(model: ir.Model) -> None:
    """Infer types and shapes with onnx, as far as it can."""
    _infer(model)
    while _drop_idle_ceil_modes(model.graph):
        for node in model.graph:
            for value in node.outputs:
                value.shape = None
        _infer(model)


def _infer(model: ir.Model) -> None:
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    finally:
        logger.setLevel(level)


def _drop_idle_ceil_modes(graph: ir.Graph) -> bool:
    """Drop the `ceil_mode` of poolings where it has no effect, and say whether there were any.

    onnx's inference would count a window more there: one that begins behind the input, and so is none. Where
    it has an effect along some axes, the padding that no window reaches is taken away along the others.
    """
    found = False
    for node in graph:
        if node.op_type not in ("AveragePool", "LpPool", "MaxPool") or not rounds_up(node):
            continue
        size = known_spatial_size(operand(node, 0))
        if size is None:
            continue
        window = Window.of(node)
        idle = [
            up == down
            for up, down in zip(window.counts(size, rounds_up=True), window.counts(size), strict=True)
        ]
        unread = window.unread(size)
        ends = [
            end - spare if is_idle and spare <= end else end
            for end, spare, is_idle in zip(window.ends, unread, idle, strict=True)
        ]
        if all(idle):
            node.attributes.pop("ceil_mode")
        elif ends != window.ends:
            node.attributes["pads"] = ir.AttrInt64s("pads", [*window.starts, *ends])
        else:
            continue
        found = True
    return found


def run_graph(model: ir.Model, outputs: Sequence[str], feeds: Arrays) -> Arrays:
    """Run a model with onnxruntime, with any of its values as outputs."""
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph)
    copy.graph.outputs[:] = [values[name] for name in outputs]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        save(copy, file)
        return dict(zip(outputs, session_of(file).run(list(outputs), feeds), strict=True))


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


def free_batch(model: ir.Model, image: ir.Value, batch: int, noise: Array) -> None:
    """Make a static batch dynamic: in the input, and in the constants that repeat it.

    A Reshape to a constant shape, a Concat with a constant row and a Resize to constant sizes hold the batch
    fixed. Where in a Reshape's result the batch is, is read off its input, whose batch is known by then.
    What this can't see, a run of several images shows.

    Parameters
    ----------
    noise
        So many images as the model takes them, to run it on where inference doesn't find the shapes.
    """
    graph = model.graph
    infer_shapes(model)
    complete_shapes(model, [noise])
    fixed = {value: static_dims(value) for node in graph for value in node.outputs}
    assert image.shape is not None
    image.shape = ir.Shape(["batch", *image.shape[1:]])
    computed = downstream(graph, [image])
    waiting = [node for node in graph if not computed.isdisjoint(node.outputs)]
    freeing = _Freeing(graph, fixed, batch)
    while True:
        for inner in ir.traversal.RecursiveGraphIterator(graph):
            for value in inner.outputs:
                if inner.graph is not graph or value in computed:
                    value.shape = None
        infer_shapes(model)
        done = {node for node in waiting if freeing.free(node)}
        if not done:
            return
        waiting = [node for node in waiting if node not in done]


class _Freeing:
    """Frees the batch in one node after the other.

    Parameters
    ----------
    fixed
        The shape that each value has with the static batch.
    """

    def __init__(self, graph: ir.Graph, fixed: dict[ir.Value, list[int | None]], batch: int) -> None:
        self._graph = graph
        self._fixed = fixed
        self._batch = batch
        # Of the axis that the batch is merged into, how many of its places come before the batch.
        self._inner: dict[ir.Value, int] = {}

    def free(self, node: ir.Node) -> bool:
        """Free a node's constants, and say whether there were any that held the batch."""
        if node.op_type == "Reshape":
            return self._reshape(node)
        if node.op_type == "Concat":
            return self._concat(node)
        if node.op_type in ("LSTM", "GRU", "RNN"):
            return self._recurrent(node)
        return node.op_type == "Resize" and self._resize(node)

    def _reshape(self, node: ir.Node) -> bool:
        source = static_dims(operand(node, 0))
        shape = [dim for dim in self._fixed[node.outputs[0]] if dim is not None]
        target = constant_ints(node.inputs[1])
        if source.count(None) != 1 or len(shape) != len(self._fixed[node.outputs[0]]) or not shape:
            return False
        # A reshape keeps the order: as many numbers come before the batch in its result as in its input.
        before = math.prod(dim or 1 for dim in source[: source.index(None)])
        before *= self._inner_of(operand(node, 0))
        axis = self._axis(shape, before)
        self._inner[node.outputs[0]] = max(before // math.prod(shape[:axis]), 1)
        if shape[axis] % self._batch or (target is not None and target[axis] == -1):
            return False
        self._replace(node, 1, [*shape[:axis], -1, *shape[axis + 1 :]])
        return True

    def _axis(self, shape: Sequence[int], before: int) -> int:
        """Return the axis of a result that holds the batch, behind so many numbers."""
        starts = [math.prod(shape[:axis]) for axis in range(len(shape))]
        for axis, start in enumerate(starts):
            if start == before and shape[axis] == self._batch:
                return axis
        # Merged with others: the rows of a matrix are [length * batch], more axes are [batch * heads].
        last = [axis for axis, start in enumerate(starts) if start <= before][-1]
        return 0 if len(shape) == 2 and before > 1 else last

    def _inner_of(self, value: ir.Value) -> int:
        while value not in self._inner:
            node = value.producer()
            sources = (
                [] if node is None else [v for v in node.inputs if v is not None and None in static_dims(v)]
            )
            if not sources:
                return 1
            value = sources[0]
        return self._inner[value]

    def _concat(self, node: ir.Node) -> bool:
        rank = len(self._fixed[node.outputs[0]])
        axis = node.attributes["axis"].as_int() % max(rank, 1)
        dynamic = [value for value in node.inputs if value is not None and None in static_dims(value)[:1]]
        repeated = [
            index
            for index, value in enumerate(node.inputs)
            if value is not None and value.const_value is not None and static_dims(value)[:1] == [1]
        ]
        if axis == 0 or not dynamic or not repeated:
            return False
        shape = ir.node("Shape", [dynamic[0]], {"start": 0, "end": 1})
        self._graph.insert_before(node, shape)
        for index in repeated:
            value = operand(node, index)
            rest = self._constant(node, f"rest.{index}", static_dims(value)[1:])
            sizes = ir.node("Concat", [shape.outputs[0], rest], {"axis": 0})
            expanded = ir.node("Expand", [value, sizes.outputs[0]])
            self._graph.insert_before(node, [sizes, expanded])
            node.replace_input_with(index, expanded.outputs[0])
        return True

    def _recurrent(self, node: ir.Node) -> bool:
        """Repeat lengths and first states, of which a constant has those of one image."""
        sequences = operand(node, 0)
        batch_axes = {4: 0, 5: 1, 6: 1}
        repeated = [
            index
            for index, value in enumerate(node.inputs)
            if index in batch_axes and value is not None and value.const_value is not None
            if static_dim(value, batch_axes[index]) == 1
        ]
        if static_dim(sequences, 1) is not None or not repeated:
            return False
        shape = ir.node("Shape", [sequences], {"start": 1, "end": 2})
        one = self._constant(node, "one", [1])
        around = ir.node("Concat", [one, shape.outputs[0], one], {"axis": 0})
        self._graph.insert_before(node, [shape, around])
        for index in repeated:
            sizes = around if batch_axes[index] else shape
            expanded = ir.node("Expand", [operand(node, index), sizes.outputs[0]])
            self._graph.insert_before(node, expanded)
            node.replace_input_with(index, expanded.outputs[0])
        return True

    def _resize(self, node: ir.Node) -> bool:
        sizes = constant_ints(node.inputs[3]) if len(node.inputs) > 3 else None
        if sizes is None or "axes" in node.attributes or sizes[0] != self._batch:
            return False
        node.attributes["axes"] = ir.AttrInt64s("axes", list(range(1, len(sizes))))
        self._replace(node, 3, sizes[1:])
        return True

    def _replace(self, node: ir.Node, index: int, numbers: Sequence[int | None]) -> None:
        node.replace_input_with(index, self._constant(node, f"input.{index}", numbers))

    def _constant(self, node: ir.Node, purpose: str, numbers: Sequence[int | None]) -> ir.Value:
        # An output that is left out has no name.
        name = f"{next(value.name for value in node.outputs if value.name)}.{purpose}"
        value = ir.val(name, const_value=ir.tensor(np.array(numbers, np.int64), name=name))
        self._graph.register_initializer(value)
        return value


def complete_shapes(model: ir.Model, batches: Sequence[Array]) -> None:
    """Fill in the types and dimensions that inference leaves open, from a run of each of some batches.

    A dimension that is the same in all of them is static, so they differ in what is dynamic.
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
    feed = str(model.graph.inputs[0].name)
    runs = [run_graph(model, names, {feed: images}) for images in batches]
    for value, name in zip(open_values, names, strict=True):
        arrays = [run[name] for run in runs]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            continue
        value.dtype = ir.DataType.from_numpy(arrays[0].dtype)
        if len({array.ndim for array in arrays}) == 1:
            sizes = zip(*(array.shape for array in arrays), strict=True)
            value.shape = ir.Shape(
                [
                    dims[0] if len(set(dims)) == 1 else "batch" if dims == tuple(map(len, batches)) else None
                    for dims in sizes
                ]
            )


def _is_open(value: ir.Value) -> bool:
    if value.shape is None:
        return True
    return any(not isinstance(dim, int) and dim.value != "batch" for dim in value.shape)
