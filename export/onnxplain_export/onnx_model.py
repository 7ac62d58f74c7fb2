"""The front end for a finished `.onnx` file, which needs no PyTorch."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass
from onnxscript import GraphBuilder

from onnxplain.errors import LayerError, ModelError, OnnxplainError, SourceError
from onnxplain.manifest import Activation, Layer, Preprocessing
from onnxplain_export.assemble import INPUT, LOGITS, TracedModel
from onnxplain_export.evidence import Evidence
from onnxplain_export.feature_map import Array, FeatureMap, feature_map_of, has_aspect, token_grids
from onnxplain_export.graph import (
    behind_quantiser,
    downstream,
    has_gradient,
    is_float,
    is_quantised,
    operand,
    static_dims,
    taken_by_branches,
    upstream,
)
from onnxplain_export.half_precision import has_half_weights, widen
from onnxplain_export.layers import (
    NO_PLACES,
    LayerCandidate,
    ModuleCall,
    candidates,
    closest_names,
    without_unread_grids,
)
from onnxplain_export.metadata import Labels, labels_said, said_of_pictures, size_said
from onnxplain_export.onnx_batch import free_batch
from onnxplain_export.onnx_file import OnnxFile, batches_of, first_line, read
from onnxplain_export.onnx_folding import fold_constants
from onnxplain_export.onnx_layers import in_attention, is_final_norm, same_as_input
from onnxplain_export.onnx_logits import RESHAPES, as_matrix, find_logits, num_classes
from onnxplain_export.onnx_places import TokenProbes, tokens_of, with_places
from onnxplain_export.onnx_session import run_graph
from onnxplain_export.onnx_shapes import complete_shapes, infer_shapes
from onnxplain_export.opset import to_design_opset
from onnxplain_export.probe import Probe
from onnxplain_export.reference_graph import Arrays
from onnxplain_export.rules import NO_GRADIENT
from onnxplain_export.verification import AS_FAR, LOGITS_TOLERANCE, relative_error

_CHANNELS = (1, 3)
# Ours, of a source whose channels are last: no layer of its own.
_LAYOUT_NODE = "onnxplain.channels_last"


@dataclass(frozen=True)
class _Input:
    """The image as the file takes it."""

    name: str
    batch: int | None
    channels: int
    height: int
    width: int
    channels_last: bool
    any_size: bool
    """The file leaves height and width open."""
    dtype: np.dtype[Any]

    def laid_out(self, image: Array) -> Array:
        """Return images [batch, channels, height, width] in the file's layout."""
        return np.ascontiguousarray(np.moveaxis(image, 1, -1)) if self.channels_last else image

    def feeds(self, image: Array) -> Arrays:
        """Return what the file is fed for images [batch, channels, height, width]."""
        return {self.name: self.laid_out(image).astype(self.dtype)}


@dataclass(frozen=True)
class _Prepared:
    """The classifier's graph as the design wants it."""

    model: ir.Model
    logits: str
    activation: Activation | None
    is_half: bool
    """The file is in float16, which is widened here to float32."""


class OnnxModel:
    """An `.onnx` classifier.

    Parameters
    ----------
    path
        The file; external data lies in its folder.
    size
        Height and width of the input, for a file that leaves them open.

    Raises
    ------
    SourceError
        The file can't be read, isn't a classifier of images, or doesn't take the size.
    """

    kind = "onnx"
    reference = "the source in onnxruntime"
    packages = ("onnx",)

    def __init__(self, path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> None:
        self._file: OnnxFile = read(Path(path))
        self._metadata = {entry.key: entry.value for entry in self._file.original.metadata_props}
        self._input = _described_input(self._file, size, size_said(self._metadata))
        self.name = Path(path).name
        self.channels, self.height, self.width = (
            self._input.channels,
            self._input.height,
            self._input.width,
        )
        try:
            Preprocessing.for_size(self.channels, self.height, self.width)
        except ModelError as error:
            raise SourceError(f"{self.name!r} takes no pictures: {error}") from None

    @property
    def files(self) -> list[Path]:
        """The file, and those of its external data."""
        path = self._file.path
        return [path, *(path.parent / name for name in self._file.data)]

    @property
    def num_classes(self) -> int:
        """How many logits there are."""
        return num_classes(self._values[self._prepared.logits])

    @property
    def activation(self) -> Activation | None:
        """What stands behind the logits at the file's end."""
        return self._prepared.activation

    @property
    def evidence(self) -> Sequence[Evidence]:
        """What the file's metadata say of the pictures that it takes."""
        return said_of_pictures(self._metadata, self.channels)

    def own_labels(self) -> Labels | None:
        """Return the classes' names, where the metadata have them; a warning says where they don't fit."""
        labels, remark = labels_said(self._metadata, self.num_classes)
        if remark is not None:
            warnings.warn(
                f"{remark}: they are left out; give the names with labels= or --labels", stacklevel=3
            )
        return labels

    @cached_property
    def _prepared(self) -> _Prepared:
        try:
            return _prepare(self._file, self._input, [self._noise(2), self._noise(3)])
        except OnnxplainError:
            raise
        except Exception as error:
            raise self._failure(error) from error

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return _values_by_name(self._prepared.model.graph)

    @cached_property
    def _layer_values(self) -> dict[str, ir.Value]:
        """The value of each layer by its names: the tensor's own, and its node's."""
        graph = self._prepared.model.graph
        counts = Counter(node.name for node in graph)
        by_node = {node.name: node.outputs[0] for node in graph if node.name and counts[node.name] == 1}
        return {**by_node, **{name: value for name, value in self._values.items() if value.producer()}}

    @cached_property
    def _calls(self) -> list[ModuleCall]:
        model = self._prepared.model
        graph = model.graph
        logits = self._values[self._prepared.logits]
        reached = _differentiable(graph, graph.inputs[0], logits)
        attention = in_attention(graph)
        size = (self.height, self.width)
        shapes = [static_dims(value) for value in reached]
        grids = token_grids(
            [(dims[2], dims[3]) for dims in shapes if len(dims) == 4 and dims[2] and dims[3]], size
        )
        names = {value: name for name, value in reversed(list(self._layer_values.items()))}
        calls = []
        for node, value in [(producer, value) for producer in graph for value in producer.outputs]:
            if value not in reached or value is logits or node.name == _LAYOUT_NODE or not is_float(value):
                continue
            dims = static_dims(value)
            is_known = len(dims) > 1 and dims[0] is None and None not in dims[1:]
            shape = tuple(dim or 0 for dim in dims)
            maps = feature_map_of(shape, size, grids) if is_known else None
            calls.append(
                ModuleCall(
                    names[value],
                    node.op_type,
                    shape,
                    maps,
                    reaches_logits=True,
                    same_as_input=same_as_input(node),
                    in_attention=value in attention,
                    has_image_aspect=maps is not None and has_aspect(maps.size, size),
                    is_final_norm=is_final_norm(graph, node, attention),
                )
            )
        return self._with_places(calls)

    def _with_places(self, calls: Sequence[ModuleCall]) -> list[ModuleCall]:
        """Say which tokens stand for places, and which of those the logits don't depend on."""
        layers = {
            call.name: str(self._layer_values[call.name].name)
            for call in calls
            if tokens_of(call) is not None
        }
        if not layers:
            return list(calls)
        probes = TokenProbes.of(self._prepared.model, self._prepared.logits, layers)
        placed = with_places(calls, probes, self.channels, (self.height, self.width))
        return without_unread_grids(placed, lambda sets: probes.reach(sets, self._noise(1)))

    def candidates(self) -> list[LayerCandidate]:
        """Return the nodes whose output has spatial extent, in the order in which they run."""
        return candidates(self._calls, self.num_classes)

    def check_layers(self, layers: Sequence[str]) -> None:
        """Check that each layer is the name of a node or tensor with maps that the logits depend on."""
        for index, name in enumerate(layers):
            if name in layers[:index]:
                raise LayerError(f"the layer {name!r} is named twice; name each once")
            self._check_layer(name)
            self._warn_before_quantiser(name)

    def trace(self, layers: Sequence[str], *, dynamic_size: bool) -> TracedModel:
        """Return the graph, once it has been found to compute what the file does."""
        self._check_graph()
        model = self._of_any_size() if dynamic_size else self._prepared.model.clone()
        values = _values_by_name(model.graph)
        targets = {layer: values[str(self._layer_values[layer].name)] for layer in layers}
        maps = {layer: found for layer in layers if (found := self._maps_of(layer))}
        logits = values[self._prepared.logits]
        return TracedModel(
            model,
            model.graph.inputs[0],
            logits,
            targets,
            maps,
            size=(self.height, self.width),
            is_half=self._prepared.is_half and not is_quantised(model.graph),
        )

    def _of_any_size(self) -> ir.Model:
        """Return the graph for images of any size; its values have the same names."""
        height, width = self.height, self.width
        if not self._input.any_size:
            raise SourceError(
                f"{self.name!r} takes images of {height}x{width} alone; leave the dynamic size out"
            )
        if self._input.batch is not None:
            raise SourceError(
                f"{self.name!r} takes batches of {self._input.batch} only, which goes with one size alone; "
                "leave the dynamic size out, or export it with a dynamic batch"
            )
        # The batch changes alone, and then the size: no side of a map can be taken for the batch.
        others = [self._noise(2), self._noise(5), self._noise(2, (2 * height, 3 * width))]
        try:
            return _prepare(self._file, self._input, others, dynamic_size=True).model
        except OnnxplainError:
            raise
        except Exception as error:
            raise SourceError(
                f"{self.name!r} doesn't run on images of another size than {height}x{width} "
                f"({first_line(error)}); leave the dynamic size out"
            ) from error

    def expected(self, probe: Probe, outputs: Arrays, layers: Sequence[Layer]) -> Arrays:
        """Return the file's own logits."""
        return {LOGITS: self._source_logits(probe.image)}

    def rounding(self, probe: Probe, expected: Arrays, layers: Sequence[Layer]) -> dict[str, float]:
        """Return how far the logits are moved by onnxruntime's optimisations, and by float16."""
        optimised = self._source_logits(probe.image, optimised=True)
        return {LOGITS: max(relative_error(expected[LOGITS], optimised), self._half_rounding)}

    @property
    def _half_rounding(self) -> float:
        """The relative size of a last digit, where the file has those of float16."""
        return float(np.finfo(np.float16).eps) if self._prepared.is_half else 0.0

    def digest(self) -> str:
        """Return the SHA-256 of the file and its external data."""
        return self._file.digest()

    def _noise(self, batch: int, size: tuple[int, int] | None = None) -> Array:
        shape = (batch, self.channels, *(size or (self.height, self.width)))
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def _source_logits(self, image: Array, *, optimised: bool = False) -> Array:
        """Run the file as it is on images, in batches that it takes."""
        value = self._values[self._prepared.logits]
        names = self._file.names
        # What comes from flattening on the way to this opset isn't in the file; what was flattened is.
        while value.name not in names and (node := value.producer()) is not None and node.op_type in RESHAPES:
            value = operand(node, 0)
        name = str(value.name)
        if name not in names:
            raise SourceError(f"the tensor {name!r} of the logits is not in {self.name!r}; export it again")
        try:
            feeds = [self._input.feeds(part) for part in batches_of(image, self._input.batch)]
            parts = self._file.run(name, feeds, optimised=optimised)
        except Exception as error:
            raise self._failure(error) from error
        return np.concatenate(parts)[: len(image)].reshape(len(image), -1).astype(np.float32)

    def _check_graph(self) -> None:
        """Check that the graph of this opset and of any batch computes what the file does."""
        image = self._noise(3)
        logits = self._prepared.logits
        expected = self._source_logits(image)
        try:
            found = run_graph(self._prepared.model, [logits], {INPUT: image})[logits]
            error = relative_error(found, expected) if found.shape == expected.shape else np.inf
        except Exception:
            if self._input.batch is None:
                raise
            error = np.inf
        if not np.isfinite(expected).all():
            raise SourceError(f"{self.name!r} returns logits that are not finite; check its weights")
        if not error <= max(LOGITS_TOLERANCE, AS_FAR * self._half_rounding):
            if self._input.batch is not None:
                raise SourceError(
                    f"{self.name!r} takes batches of {self._input.batch} only, in a way that can't be made "
                    "dynamic; export it with a dynamic batch"
                )
            raise SourceError(
                f"{self.name!r} computes other logits once raised to this opset (by {error:.1e}, relative); "
                "please report the model"
            )

    def _check_layer(self, name: str) -> None:
        value = self._layer_values.get(name)
        if value is None:
            raise self._unknown_layer(name)
        graph = self._prepared.model.graph
        logits = self._values[self._prepared.logits]
        if value not in downstream(graph, graph.inputs):
            raise LayerError(f"the layer {name!r} doesn't depend on the image; choose another")
        if value not in upstream([logits]) or value is logits:
            raise LayerError(f"the logits don't depend on the layer {name!r}; choose one before them")
        if not is_float(value):
            raise LayerError(f"the layer {name!r} is {value.dtype}, not floating-point; choose one that is")
        if value not in _differentiable(graph, value, logits):
            node = _where_path_ends(graph, value, logits)
            raise LayerError(
                f"no gradient comes from the logits to the layer {name!r}: {node.op_type} "
                f"(node {node.name!r}) puts out whole numbers or steps; choose a layer after it"
            )
        if self._maps_of(name) is None:
            dims = ["batch", *(str(dim or "?") for dim in static_dims(value)[1:])]
            raise LayerError(
                f"the layer {name!r} puts out the shape [{', '.join(dims)}], which has no spatial extent; "
                "choose one of [batch, channels, height, width], channels last, or a grid of tokens"
            )
        if not self._has_places(name):
            raise LayerError(NO_PLACES.format(name=name, count=static_dims(value)[1]))
        if not self._reaches(name):
            raise LayerError(f"the logits don't depend on the layer {name!r}; choose another")

    def _warn_before_quantiser(self, name: str) -> None:
        value = self._layer_values[name]
        behind, node = behind_quantiser(value), value.producer()
        names = [known for known, other in self._layer_values.items() if other is behind]
        if names and node is not None:
            warnings.warn(
                f"the layer {name!r} is taken before its quantiser, and its {node.op_type} so runs in float; "
                f"what the network goes on with, in whole numbers, is the layer {names[0]!r}",
                stacklevel=4,  # the caller of `export`
            )

    def _unknown_layer(self, name: str) -> LayerError:
        if name in self._file.names:
            return LayerError(
                f"the layer {name!r} is in the file, but was optimised away: it is constant, its name is "
                "that of several nodes, or the logits don't depend on it; list the others with: "
                "onnxplain layers SOURCE"
            )
        near = closest_names(name, self._layer_values)
        return LayerError(
            f"the file has no node or tensor {name!r}{near}; list them with: onnxplain layers SOURCE"
        )

    def _maps_of(self, name: str) -> FeatureMap | None:
        return next((call.feature_map for call in self._calls_of(name)), None)

    def _reaches(self, name: str) -> bool:
        return any(call.reaches_logits for call in self._calls_of(name))

    def _has_places(self, name: str) -> bool:
        return any(call.has_places for call in self._calls_of(name))

    def _calls_of(self, name: str) -> list[ModuleCall]:
        value = self._layer_values[name]
        return [call for call in self._calls if self._layer_values[call.name] is value]

    def _failure(self, error: Exception) -> OnnxplainError:
        return SourceError(f"{self.name!r} can't be run ({first_line(error)}); check it with onnxruntime")


def _described_input(file: OnnxFile, size: tuple[int, int] | None, said: tuple[int, int] | None) -> _Input:
    name = file.path.name
    inputs = file.inputs
    if len(inputs) != 1:
        listed = ", ".join(value.name for value in inputs)
        raise SourceError(
            f"{name!r} takes {len(inputs)} inputs ({listed}), and an explainer takes one, the image; "
            "make the others constants"
        )
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16) or len(dims) != 4:
        kind = TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type else "no tensor"
        shown = ", ".join(str(dim or "?") for dim in dims)
        raise SourceError(
            f"the input {inputs[0].name!r} of {name!r} is {kind.lower()} [{shown}]; an explainer needs one "
            "of float32 [batch, channels, height, width], or with the channels last"
        )
    channels_last = dims[1] not in _CHANNELS and dims[3] in _CHANNELS
    batch, channels, height, width = (
        dims[index] for index in ((0, 3, 1, 2) if channels_last else (0, 1, 2, 3))
    )
    if channels is None:
        raise SourceError(
            f"the input {inputs[0].name!r} of {name!r} doesn't say how many channels it has; "
            "set its shape with onnxruntime.tools.make_dynamic_shape_fixed"
        )
    wanted = size or tuple(
        other if side is None else side
        for side, other in zip((height, width), said or (None, None), strict=True)
    )
    sides = []
    for side, own in zip(wanted, (height, width), strict=True):
        if side is None:
            raise SourceError(f"{name!r} takes images of any size; choose one, such as --size 224")
        if own not in (None, side):
            raise SourceError(
                f"{name!r} takes images of {height or 'any'}x{width or 'any'}, not {wanted[0]}x{wanted[1]}; "
                "leave the size out"
            )
        sides.append(side)
    any_size = height is None and width is None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return _Input(inputs[0].name, batch, channels, sides[0], sides[1], channels_last, any_size, dtype)


def _prepare(
    file: OnnxFile, spec: _Input, noise: Sequence[Array], *, dynamic_size: bool = False
) -> _Prepared:
    """Make the classifier's graph; the batches of noise differ in what is dynamic."""
    model = ir.from_proto(to_design_opset(file.light))
    graph = model.graph
    _attach_weights(graph, file)
    is_half = has_half_weights(graph)
    if is_half:
        widen(graph)
    TopologicalSortPass()(model)
    image = graph.inputs[0]
    sides = ["height", "width"] if dynamic_size else [spec.height, spec.width]
    shape = [*sides, spec.channels] if spec.channels_last else [spec.channels, *sides]
    image.shape = ir.Shape([spec.batch or "batch", *shape])
    for output in graph.outputs:
        output.shape = None
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            # What a file says of its own values may be stale, or of another size.
            value.shape = None
    fold_constants(model)
    if spec.batch is not None:
        images = np.resize(noise[0], (spec.batch, *noise[0].shape[1:]))
        free_batch(model, image, spec.batch, spec.laid_out(images))
    infer_shapes(model)
    _name_image(graph, spec, sides)
    infer_shapes(model)
    complete_shapes(model, noise)
    logits, activation = find_logits(graph)
    if logits is graph.inputs[0] or logits.producer() is None:
        raise SourceError(f"the logits of {file.path.name!r} are not computed; it is no classifier")
    logits = as_matrix(GraphBuilder(graph).op, logits)
    if logits.name is None:
        logits.name = "onnxplain.logits"
    graph.outputs[:] = [logits]
    RemoveUnusedNodesPass()(model)
    _name_values(graph)
    return _Prepared(model, str(logits.name), activation, is_half)


def _attach_weights(graph: ir.Graph, file: OnnxFile) -> None:
    """Make constants again of the inputs that stand for weights."""
    for value in list(graph.inputs):
        if value.name is not None and value.name in file.weights:
            graph.inputs.remove(value)
            tensor = file.weights[value.name]
            # Saved elsewhere, a tensor that names its data's file would miss it; mapped, it takes no memory.
            if isinstance(tensor, ir.ExternalTensor):
                tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
            value.const_value = tensor
            graph.register_initializer(value)
        elif value.is_initializer():
            graph.inputs.remove(value)


def _name_image(graph: ir.Graph, spec: _Input, size: Sequence[int | str]) -> None:
    """Name the input as the design does, and put a Transpose behind it where the channels are last."""
    source = graph.inputs[0]
    taken = _values_by_name(graph).get(INPUT)
    if taken is not None and taken is not source:
        taken.name = f"source.{INPUT}"
    if not spec.channels_last:
        source.name = INPUT
        return
    image = ir.val(INPUT, dtype=ir.DataType.FLOAT, shape=["batch", spec.channels, *size])
    transpose = ir.node("Transpose", [image], {"perm": [0, 2, 3, 1]}, name=_LAYOUT_NODE)
    channels_last = transpose.outputs[0]
    channels_last.dtype = ir.DataType.FLOAT
    ir.convenience.replace_all_uses_with(source, channels_last)
    graph.inputs[:] = [image]
    first = next(iter(graph))
    graph.insert_before(first, transpose)
    if source.name != INPUT:
        channels_last.name = source.name


def _name_values(graph: ir.Graph) -> None:
    """Give each value without a name one, so that a clone's values can be told; but not what is left out."""
    for index, node in enumerate(graph):
        for position, value in enumerate(node.outputs):
            if not value.name and value.uses():
                value.name = f"{node.op_type}.{index}.{position}"


def _values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    values = [
        *graph.inputs,
        *graph.initializers.values(),
        *(value for node in graph for value in node.outputs),
    ]
    return {str(value.name): value for value in values if value.name}


def _differentiable(graph: ir.Graph, source: ir.Value, logits: ir.Value) -> set[ir.Value]:
    """Return the values between two that a gradient reaches."""
    behind = {source}
    for node in graph:
        if node.op_type not in NO_GRADIENT and not behind.isdisjoint(_taken(node)):
            behind.update(value for value in node.outputs if has_gradient(value))
    before = {logits}
    for node in reversed(list(graph)):
        if node.op_type not in NO_GRADIENT and not before.isdisjoint(node.outputs):
            before.update(value for value in _taken(node) if has_gradient(value))
    return behind & before


def _where_path_ends(graph: ir.Graph, source: ir.Value, logits: ir.Value) -> ir.Node:
    """Return the first node behind a value through which no gradient comes back."""
    behind = downstream(graph, [source]) & upstream([logits])
    return next(
        node
        for node in graph
        if not behind.isdisjoint(node.outputs)
        and not behind.isdisjoint(_taken(node))
        and (node.op_type in NO_GRADIENT or not all(has_gradient(value) for value in node.outputs))
    )


def _taken(node: ir.Node) -> set[ir.Value]:
    """Return what a node takes; by branches and loops too, so that these are refused by name."""
    return {value for value in node.inputs if value is not None} | taken_by_branches(node)
