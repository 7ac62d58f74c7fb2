"""A model as protobuf, its weights apart: to write them to a file, or to hand them to an engine, as arrays.

A message of the whole model holds its weights once, and its bytes hold them once more. Of a large network
making these takes longer than running it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

Array = npt.NDArray[np.generic]
Piece = bytes | memoryview

# Smaller constants stay in the message: shape inference reads shapes and axes there.
_SMALL = 1024
# What numpy and protobuf hold in the same bytes.
_KINDS = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)
# The wire type of a field that begins with its length.
_WITH_LENGTH = 2


def without_weights(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model as a message in which the weights are external data, of no file, and these by name."""
    copy = model.clone()
    weights = {}
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        # What no node reads, onnxruntime drops before it takes the weights, and then fails to find it.
        if tensor.nbytes >= _SMALL and tensor.dtype in _KINDS and value.uses():
            weights[name] = np.ascontiguousarray(tensor.numpy())
            shape = ir.Shape(weights[name].shape)
            value.const_value = ir.ExternalTensor(
                "weights", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, shape=tensor.shape, name=name)
    return ir.to_proto(copy), weights


def pieces(model: ir.Model) -> Iterator[Piece]:
    """Yield the bytes of a model's message, piece by piece, each of its weights from where it is."""
    proto, weights = without_weights(model)
    tensors: list[list[Piece]] = []
    for tensor in proto.graph.initializer:
        array = weights.get(tensor.name)
        if array is not None:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        data: list[Piece] = (
            [] if array is None else [_start(tensor, "raw_data", array.nbytes), array.reshape(-1).data]
        )
        tensors.append([tensor.SerializeToString(), *data])
    proto.graph.ClearField("initializer")
    fields = [[_start(proto.graph, "initializer", _size(tensor)), *tensor] for tensor in tensors]
    graph: list[Piece] = [_part(proto.graph, "initializer", before=True)]
    graph += [piece for field in fields for piece in field]
    graph += [_part(proto.graph, "initializer", before=False)]
    proto.ClearField("graph")
    yield _part(proto, "graph", before=True)
    yield _start(proto, "graph", _size(graph))
    yield from graph
    yield _part(proto, "graph", before=False)


def _size(parts: Iterable[Piece]) -> int:
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)


def _part(message: Any, field: str, *, before: bool) -> bytes:
    """Return the bytes of the fields that stand before another one, or behind it: they stand by number."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    part = type(message)()
    part.CopyFrom(message)
    for descriptor, _ in message.ListFields():
        if (descriptor.number < number) != before:
            part.ClearField(descriptor.name)
    data: bytes = part.SerializeToString()
    return data


def _start(message: Any, field: str, size: int) -> bytes:
    """Return the bytes that a field of so many bytes starts with: its number and kind, and its length."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | _WITH_LENGTH) + _varint(size)


def _varint(number: int) -> bytes:
    """Return a whole number seven bits a byte, the lowest first, each byte but the last marked."""
    marked = bytearray()
    while number > 0x7F:
        marked.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*marked, number])
