"""For each operator that has a gradient rule, a tiny network on whose path it lies, traced once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional

from onnxplain_export.assemble import TracedModel
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.torch_model import record_calls, trace

CLASSES = 4
EXAMPLE = torch.zeros(1, 3, 8, 8)

Tail = Callable[[torch.Tensor], torch.Tensor]


class Network(nn.Module):
    """Feature maps [4, 4, 4], what is under test, and a linear head."""

    def __init__(self, tail: nn.Module | Tail, head: nn.Module | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh())
        self.tail = tail
        width = tail(torch.zeros(2, 4, 4, 4)).flatten(1).shape[1]
        self.head = head or nn.Linear(width, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.tail(self.features(image)).flatten(1))


class MatrixHead(nn.Module):
    """A matrix product and a sum, where nn.Linear would be one Gemm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, CLASSES))
        self.bias = nn.Parameter(torch.randn(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class ClassMaps(nn.Module):
    """Feature maps [4, 4, 4], and logits that are averages of class maps."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh())
        self.maps = nn.Sequential(nn.Conv2d(4, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.maps(self.features(image))


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(4) + 0.5)
    # Behind a convolution it would be folded into it.
    return nn.Sequential(nn.Sigmoid(), norm)


def global_average(maps: torch.Tensor) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(maps, 1)


INDICES = torch.tensor([1, 1, 3, 0])


def elementwise(maps: torch.Tensor) -> torch.Tensor:
    """A branch for each operator, since tracing takes longest."""
    mean = maps.mean((2, 3), keepdim=True)
    branches = [
        functional.relu(maps),
        functional.hardtanh(maps, -0.2, 0.3),
        torch.sigmoid(maps),
        torch.tanh(maps),
        functional.hardsigmoid(6 * maps),
        functional.hardswish(6 * maps),
        functional.gelu(maps),
        torch.softmax(maps, dim=1),
        maps + mean,
        mean - maps,
        maps * mean,
        maps / (2 + mean),
        -maps,
    ]
    return torch.cat(branches, dim=1)


ELEMENTWISE = ["Relu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Softmax"]
ARITHMETIC = ["Add", "Sub", "Mul", "Div", "Neg"]
# Each is made so that a rule's typical slips keep the shapes right.
TAILS: dict[str, Callable[[], nn.Module | Tail]] = {
    "elementwise": lambda: elementwise,
    "plain": nn.Tanh,
    "Conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "MatMul": lambda: lambda maps: maps @ torch.tanh(maps),
    "Gemm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh()),
    "BatchNormalization": batch_norm,
    "LayerNormalization": lambda: nn.LayerNorm(4),
    "MaxPool": lambda: nn.MaxPool2d(2, stride=1),
    "AveragePool": lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "GlobalAveragePool": lambda: global_average,
    "ReduceMean": lambda: lambda maps: maps.mean(2),
    "ReduceSum": lambda: lambda maps: maps.sum(2),
    "Squeeze": lambda: lambda maps: torch.tanh(maps.sum(2, keepdim=True).squeeze(2)),
    "Unsqueeze": lambda: lambda maps: maps.mean(2).unsqueeze(2) * maps,
    "Transpose": lambda: lambda maps: maps.permute(0, 2, 3, 1),
    "Expand": lambda: lambda maps: maps.sum(2, keepdim=True).expand(-1, -1, 4, -1),
    "Concat": lambda: lambda maps: torch.cat([maps, torch.tanh(maps)], dim=1),
    "Split": lambda: lambda maps: torch.mul(*torch.split(maps, [1, 3], dim=1)),
    "Gather": lambda: lambda maps: torch.index_select(maps, 1, INDICES),
}
#: The tail in which each operator lies.
TAIL_OF: dict[str, str] = {
    **dict.fromkeys([*ELEMENTWISE, *ARITHMETIC], "elementwise"),
    **dict.fromkeys(["Identity", "Dropout", "Cast", "Reshape", "Flatten"], "plain"),
    **{name: name for name in TAILS if name not in ("elementwise", "plain")},
}


def _gemm_input(graph: ir.Graph) -> tuple[ir.Node, ir.Value]:
    node = next(node for node in reversed(graph) if node.op_type in ("Gemm", "Add"))
    return node, node.inputs[0]


def _insert(operator: str, **attributes: int) -> Callable[[ir.Graph], None]:
    """Put an operator that changes nothing before the last one."""

    def rewrite(graph: ir.Graph) -> None:
        last, value = _gemm_input(graph)
        node = ir.node(operator, [value], attributes)
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "put_in", value.type, value.shape
        last.prepend(node)
        last.replace_input_with(0, node.outputs[0])

    return rewrite


def _replace(old: str, new: str) -> Callable[[ir.Graph], None]:
    """Write an operator as another one that does the same with its first input alone."""

    def rewrite(graph: ir.Graph) -> None:
        node = next(node for node in reversed(graph) if node.op_type == old)
        replacement = ir.node(new, node.inputs[:1])
        output = replacement.outputs[0]
        output.name, output.type, output.shape = (
            "written_otherwise",
            node.outputs[0].type,
            node.outputs[0].shape,
        )
        node.append(replacement)
        ir.convenience.replace_all_uses_with(node.outputs[0], output, replace_graph_outputs=True)
        graph.remove(node, safe=True)

    return rewrite


def _squeeze(graph: ir.Graph) -> None:
    """Write the last Reshape, of maps of one place, as a Squeeze where it is one."""
    node = next(node for node in reversed(graph) if node.op_type == "Reshape")
    axes = ir.node("Constant", [], {"value": ir.tensor([2, 3])})
    axes.outputs[0].name = "places"
    node.prepend(axes)
    node.replace_input_with(1, axes.outputs[0])
    node.op_type = "Squeeze"
    node.attributes.clear()


# What PyTorch's exporter doesn't write, and others do.
REWRITES: dict[str, Callable[[ir.Graph], None]] = {
    "Cast": _insert("Cast", to=ir.DataType.FLOAT),
    "Identity": _insert("Identity"),
    "Dropout": _insert("Dropout"),
    "Flatten": _replace("Reshape", "Flatten"),
    "GlobalAveragePool": _replace("ReduceMean", "GlobalAveragePool"),
}
#: Between class maps and logits; each has a rule for a gradient of one channel.
OF_CLASS_MAPS = ["Conv", "Flatten", "GlobalAveragePool", "ReduceMean", "Relu", "Reshape", "Squeeze"]


@functools.cache
def _traced(tail: str, head: Callable[[int], nn.Module] | None = None) -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(0)
    return _trace(Network(TAILS[tail](), head and head(64)))


@functools.cache
def _traced_class_maps() -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(0)
    return _trace(ClassMaps())


def _trace(model: nn.Module) -> tuple[nn.Module, onnx.ModelProto]:
    calls, _ = record_calls(model, EXAMPLE)
    return model, ir.to_proto(trace(model, ["features"], EXAMPLE, calls, dynamic_size=False).model)


def network(operator: str) -> tuple[nn.Module, onnx.ModelProto]:
    """Return a network on whose path an operator lies, and its trace."""
    model, proto = _traced(TAIL_OF[operator])
    return model, _rewritten(proto, operator)


def network_with_logits_from(operator: str) -> tuple[nn.Module, onnx.ModelProto]:
    """Return a network whose logits an operator computes, alone or with others, and its trace."""
    if operator in OF_CLASS_MAPS:
        model, proto = _traced_class_maps()
        if operator == "Squeeze":
            copy = ir.from_proto(proto)
            _squeeze(copy.graph)
            return model, ir.to_proto(copy)
        return model, _rewritten(proto, operator)
    model, proto = _traced("plain", None if operator == "Gemm" else MatrixHead)
    return model, _rewritten(proto, operator)


def _rewritten(proto: onnx.ModelProto, operator: str) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    if operator in REWRITES:
        REWRITES[operator](model.graph)
    rewritten = ir.to_proto(model)
    onnx.checker.check_model(rewritten)
    return rewritten


def retraced(proto: onnx.ModelProto) -> Callable[..., TracedModel]:
    """Return a stand-in for `trace` that hands out a copy of an earlier trace."""

    def trace_again(
        model: nn.Module, layers: Sequence[str], *arguments: object, **options: object
    ) -> TracedModel:
        copy = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
        logits, tap = copy.graph.outputs
        return TracedModel(
            copy, copy.graph.inputs[0], logits, {layers[0]: tap}, {layers[0]: FeatureMap(4, 4, 4)}, (8, 8)
        )

    return trace_again
