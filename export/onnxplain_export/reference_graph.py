"""Evaluate a graph with onnx's reference evaluator: the arithmetic that verification relies on.

Every operator runs as the ONNX standard defines it, in plain numpy. In float32 a directional derivative of a
deep network drowns in rounding; in float64 it is exact to eight digits and more. What the graph says in its
own precision tells in turn how far rounding alone moves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxplain_export.opset_nodes import graphs_of
from onnxplain_export.reference_operators import OPERATORS
from onnxplain_export.reference_products import on_one_thread

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

#: What is widened: a network in half precision is evaluated in float64 too.
_NARROW = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_NARROW_NAMES = frozenset({"float32", "float16", "bfloat16"})


class ReferenceGraph:
    """A part of a graph, evaluated in float64 or in its own precision.

    Parameters
    ----------
    model
        Where the part stands. It isn't changed.
    inputs, outputs
        Names of the values that the part starts and ends with.
    weights
        Weights by name, kept between the parts of one model; those that are missing are added.
    in_float64
        Widen what is narrower, the weights and what is fed among it; else all runs in its own precision.
    """

    def __init__(
        self,
        model: ir.Model,
        inputs: list[str],
        outputs: list[str],
        weights: Arrays,
        *,
        in_float64: bool = True,
    ) -> None:
        self._in_float64 = in_float64
        part = ir.convenience.extract(model.graph, inputs, outputs)
        self._outputs = outputs
        self._weights: Arrays = {}
        # As inputs the weights are taken once, and not copied into a protobuf message and out of it again.
        for name, value in list(part.initializers.items()):
            if name not in weights and value.const_value is not None:
                weights[name] = self._array(value.const_value.numpy())
            self._weights[name] = weights[name]
            del part.initializers[name]
            part.inputs.append(value)
        proto = ir.to_proto(ir.Model(part, ir_version=model.ir_version))
        self._evaluator = ReferenceEvaluator(_widen(proto) if in_float64 else proto, new_ops=OPERATORS)
        self._read_last = _read_last(proto.graph, {*outputs, *self._weights})

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Evaluate the part; outputs come by name."""
        values: dict[str, Any] = {"": None, **self._evaluator.rt_inits_, **self._weights}
        values |= {name: self._array(array) for name, array in feeds.items()}
        # The evaluator's own `run` keeps all that it computes: tens of gigabytes for a transformer.
        with np.errstate(all="ignore"), on_one_thread():
            for node, read_last in zip(self._evaluator.rt_nodes_, self._read_last, strict=True):
                context = {"context": values} if node.need_context() else {}
                results = _run(node, [values[name] for name in node.input], context)
                values.update(zip(node.output, results, strict=False))
                for name in read_last:
                    values.pop(name, None)
        return {name: values[name] for name in self._outputs}

    def _array(self, array: Array) -> Array:
        return _widened(array) if self._in_float64 else array


def _run(node: Any, inputs: Sequence[Any], context: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run a node; one in float16 as engines do, which add up in float32 and round what they put out."""
    halves = [isinstance(value, np.ndarray) and value.dtype == np.float16 for value in inputs]
    if not any(halves) or node.op_type == "Cast":
        return tuple(node.run(*inputs, **context))
    widened = [
        value.astype(np.float32) if is_half else value for value, is_half in zip(inputs, halves, strict=True)
    ]
    return tuple(
        value.astype(np.float16) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value
        for value in node.run(*widened, **context)
    )


def _read_last(graph: onnx.GraphProto, kept: Set[str]) -> list[list[str]]:
    """Return for each node of a graph the values that no later one reads, but for those to be kept."""
    # What is nested in a node reads values that its inputs don't tell.
    nested = [part for part in graphs_of(graph) if part is not graph]
    known = {"", *kept, *(output.name for part in nested for output in part.output)}
    known.update(name for part in nested for node in part.node for name in node.input)
    freed: list[list[str]] = []
    for node in reversed(graph.node):
        freed.append([name for name in dict.fromkeys([*node.input, *node.output]) if name not in known])
        known.update(node.input, node.output)
    return freed[::-1]


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.name in _NARROW_NAMES else array


def _widen(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Turn every float32, and what is narrower, of a model into float64, in place."""
    for graph in graphs_of(proto.graph):
        _widen_graph(graph)
    return proto


def _widen_graph(graph: onnx.GraphProto) -> None:
    # The inferred types of the values in between no longer hold, and the evaluator doesn't need them.
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in _NARROW:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
        for attribute in node.attribute:
            _widen_attribute(attribute)


def _widen_attribute(attribute: onnx.AttributeProto) -> None:
    if attribute.type == onnx.AttributeProto.TENSOR:
        _widen_tensor(attribute.t)
    elif attribute.name in ("to", "dtype") and attribute.i in _NARROW:
        attribute.i = TensorProto.DOUBLE
    elif attribute.name in ("value_float", "value_floats"):
        number = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        attribute.CopyFrom(
            helper.make_attribute("value", numpy_helper.from_array(np.array(number, np.float64)))
        )


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _NARROW:
        wide = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
