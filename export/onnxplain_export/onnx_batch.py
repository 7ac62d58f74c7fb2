"""Make a graph's batch dynamic, in its input and in the constants that repeat it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant_ints, downstream, operand, static_dim, static_dims
from onnxplain_export.onnx_shapes import complete_shapes, infer_shapes
from onnxplain_export.reference_graph import Array


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
