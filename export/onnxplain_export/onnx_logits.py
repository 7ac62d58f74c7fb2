"""Find the logits in a classifier's graph: what goes into a Softmax or Sigmoid at its end."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.errors import SourceError
from onnxplain.manifest import Activation
from onnxplain_export.graph import is_float, operand, static_dims
from onnxplain_export.rules.registry import Op

_COPIES = ("Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear")
RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
# Tails that put out labels in place of numbers; their first input has the numbers.
_LABELS = ("ArgMax", "ZipMap", "TopK")
_ACTIVATIONS: dict[str, Activation] = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}


def find_logits(graph: ir.Graph) -> tuple[ir.Value, Activation | None]:
    """Return the value that holds the logits, and what the source itself made probabilities with.

    Raises
    ------
    SourceError
        No output, or more than one, could be the logits.
    """
    found: dict[ir.Value, tuple[str | None, Activation | None]] = {}
    for output in graph.outputs:
        value, activation = _before_activation(output)
        if _has_classes(value) and (value not in found or found[value][1] is None):
            found[value] = (output.name, activation)
    for choice in (
        list(found),
        [value for value, (name, _) in found.items() if name == "logits"],
        [value for value, (_, activation) in found.items() if activation is not None],
    ):
        if len(choice) == 1:
            return choice[0], found[choice[0]][1]
    shapes = ", ".join(f"{value.name} {_described(value)}" for value in graph.outputs)
    if found:
        raise SourceError(
            f"the model has several outputs that could be logits ({shapes}); "
            "keep one with onnx.utils.extract_model"
        )
    raise SourceError(f"no output is [batch, num_classes] of a floating-point type ({shapes})")


def as_matrix(op: Op, logits: ir.Value) -> ir.Value:
    """Return logits as [batch, num_classes]; they may be [batch, num_classes, 1, 1] or [batch]."""
    dims = static_dims(logits)
    if len(dims) == 2:
        return logits
    flat = op.Flatten(logits, axis=1)
    assert logits.shape is not None
    flat.type = logits.type
    flat.shape = ir.Shape([logits.shape[0], num_classes(logits)])
    return flat


def num_classes(logits: ir.Value) -> int:
    """Return how many numbers there are for each image."""
    count = 1
    for dim in static_dims(logits)[1:]:
        count *= dim or 0
    return count


def _before_activation(output: ir.Value) -> tuple[ir.Value, Activation | None]:
    plain = _followed_back(output, ("Identity", *_LABELS))
    value = _followed_back(plain, (*_COPIES, *RESHAPES))
    node = value.producer()
    if node is not None and node.op_type in _ACTIVATIONS and _is_over_classes(node):
        return operand(node, 0), _ACTIVATIONS[node.op_type]
    # Reshapes behind which there is no activation may be what gave the logits their shape.
    return plain, None


def _followed_back(value: ir.Value, operators: tuple[str, ...]) -> ir.Value:
    node = value.producer()
    while node is not None and node.op_type in operators:
        value = operand(node, 0)
        node = value.producer()
    return value


def _is_over_classes(node: ir.Node) -> bool:
    """Say whether a Softmax runs over all that there is for an image."""
    dims = static_dims(operand(node, 0))
    if node.op_type == "Sigmoid" or not dims:
        return _has_classes(operand(node, 0))
    attribute = node.attributes.get("axis")
    axis = (-1 if attribute is None else attribute.as_int()) % len(dims)
    return axis > 0 and all(dim == 1 for index, dim in enumerate(dims) if index not in (0, axis))


def _has_classes(value: ir.Value) -> bool:
    dims = static_dims(value)
    if not is_float(value) or not dims or None in dims[1:]:
        return False
    return sum(dim != 1 for dim in dims[1:]) <= 1 and num_classes(value) > 0


def _described(value: ir.Value) -> str:
    if value.shape is None:
        return "of unknown shape"
    return f"{value.dtype} [{', '.join(str(dim) for dim in value.shape)}]"
