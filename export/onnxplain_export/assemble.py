"""Turn a traced classifier into an explainer: selector, gradients, names, manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import GraphBuilder

from onnxplain.errors import LayerError, SourceError
from onnxplain.manifest import (
    GUIDED_GRADIENTS,
    IMAGE_GRADIENTS,
    Preprocessing,
    output_of_layer,
)
from onnxplain_export.differentiate import differentiate
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.graph import (
    before_quantiser,
    constant_ints,
    downstream,
    operand,
    skip_identities,
    static_dims,
    upstream,
)
from onnxplain_export.heatmap import heatmap, sides_of
from onnxplain_export.maps import METHODS
from onnxplain_export.pixels import NORMALISED, Picture
from onnxplain_export.rules.guided import GUIDED_RULES
from onnxplain_export.rules.registry import Op, constant_like
from onnxplain_export.selector import select_classes

INPUT, CLASS_INDEX, LOGITS, EXPLAINED = "image", "class_index", "logits", "explained_class"
CAM, HEATMAP = "cam", "heatmap"


# The image's own layout, whatever its size.
AS_IT_IS = FeatureMap(1, 1, 1)


@dataclass(frozen=True)
class TracedModel:
    """A classifier as a graph: one image input, its logits, and the values of its target layers."""

    model: ir.Model
    image: ir.Value
    logits: ir.Value
    targets: dict[str, ir.Value]
    """The tapped value by the layer's name."""
    maps: dict[str, FeatureMap]
    """How each tapped value holds its feature maps, at the size below."""
    size: tuple[int, int]
    """Height and width of the image; where they are dynamic, those that the classifier was traced at."""
    is_half: bool = False
    """The source is in float16, widened here to float32."""

    @property
    def has_any_size(self) -> bool:
        """Whether height and width of the image are dynamic."""
        return None in static_dims(self.image)[2:]


def output_names(layers: Sequence[str]) -> list[tuple[str, str]]:
    """Return the names of each layer's activations and gradients, suffixed where there are several."""
    return [(_named("activations", layer, layers), _named("gradients", layer, layers)) for layer in layers]


def _named(kind: str, layer: str, layers: Sequence[str]) -> str:
    return output_of_layer(kind, layer, len(layers))


def assemble(
    traced: TracedModel,
    *,
    input_gradient: bool = False,
    guided: bool = False,
    method: str | None = None,
    pixels: Preprocessing | None = None,
) -> None:
    """Add the explainer's inputs and outputs to a traced classifier, in place.

    Parameters
    ----------
    traced
        The classifier.
    input_gradient, guided
        Add the gradients of the image, by the rules as they are and by those of guided backpropagation.
    method
        Add the maps and heatmaps of a method.
    pixels
        Take pictures of any size, and preprocess them so.

    Raises
    ------
    LayerError
        The logits don't depend on a layer, or it isn't of float32.
    SourceError
        The logits aren't of float32.
    UnsupportedOperatorError
        An operator between a layer and the logits has no rule.
    """
    graph = traced.model.graph
    targets = {name: skip_identities(value) for name, value in traced.targets.items()}
    logits = skip_identities(traced.logits)
    _check_paths(graph, logits, targets)
    own_nodes = list(graph)

    class_index = ir.val(CLASS_INDEX, dtype=ir.DataType.INT64, shape=["batch", "classes"])
    graph.inputs[:] = [traced.image, class_index]
    graph.outputs.clear()
    op = GraphBuilder(graph).op
    classes = select_classes(op, class_index, logits)
    # Inside, the classes are the outermost axis; the caller's shape is [batch, classes].
    selected = op.Transpose(classes.index, perm=[1, 0])
    sources = [*targets.values(), *([traced.image] if input_gradient else [])]
    # A logit that its own quantiser cuts off is explained all the same: it is just what is asked about.
    scores = before_quantiser(logits)
    gradients = differentiate(op, graph, scores, selected, sources)
    image_gradients = {IMAGE_GRADIENTS: gradients[-1]} if input_gradient else {}
    if guided:
        (image_gradients[GUIDED_GRADIENTS],) = differentiate(
            op, graph, scores, selected, [traced.image], GUIDED_RULES
        )

    # Added to a gradient: a Where on all of it would take twice as long.
    zero, nan = constant_like(op, 0.0, logits), constant_like(op, np.nan, logits)
    nothing = op.Unsqueeze(op.Where(classes.valid, zero, nan), [2, 3, 4])
    names = _OutputNames(graph, op)
    names.give(logits, LOGITS, ["batch", logits.shape[1] if logits.shape else None])

    def give_gradient(name: str, gradient: ir.Value, maps: FeatureMap, shape: Sequence[object]) -> ir.Value:
        if maps.tokens is None:
            given = _in_callers_order(op, gradient, nothing)
        else:
            tokens = op.Transpose(gradient, perm=[1, 0, *range(2, 1 + maps.rank)])
            given = op.Add(maps.emit_fold(op, tokens, 2, _grid_size(op, traced, maps)), nothing)
        names.give(given, name, ["batch", "classes", *shape])
        return given

    cams = []
    for (activations_name, gradients_name), (name, target), gradient in zip(
        output_names(list(targets)), targets.items(), gradients[: len(targets)], strict=True
    ):
        maps = traced.maps[name]
        sides = (
            (f"{activations_name}.height", f"{activations_name}.width") if traced.has_any_size else maps.size
        )
        shape = [maps.channels, *sides]
        activations = maps.emit_fold(op, target, 1, _grid_size(op, traced, maps))
        names.give(activations, activations_name, ["batch", *shape])
        given = give_gradient(gradients_name, gradient, maps, shape)
        if method is not None:
            cams.append(METHODS[method](op, activations, given))
            cams[-1].shape = ir.Shape(["batch", "classes", *sides])
    for name, gradient in image_gradients.items():
        assert traced.image.shape is not None
        give_gradient(name, gradient, AS_IT_IS, list(traced.image.shape[1:]))
    picture = None if pixels is None else Picture.of(op, INPUT, pixels)
    if cams:
        _give_maps(op, names, traced, picture, cams, op.Squeeze(nothing, [4]))
    names.give(classes.explained, EXPLAINED, ["batch", "classes"])
    if picture is None:
        names.call(traced.image, INPUT)
    else:
        normalised = picture.normalised(op)
        normalised.type, normalised.shape = traced.image.type, traced.image.shape
        names.call(normalised, NORMALISED)
        traced.image.replace_all_uses_with(normalised)
        names.call(picture.value, INPUT)
        graph.inputs[0] = picture.value
    _merge_equal(traced.model, own_nodes)
    _clean(traced.model)


def _in_callers_order(op: Op, gradient: ir.Value, nothing: ir.Value) -> ir.Value:
    """Return a gradient with the batch outermost, not the classes, and NaN where there is no such class.

    Behind many layers it comes of a last step that repeats something small, as the gradient of a mean over
    all places. That is then done with what is small: a gradient is large, and each copy takes long.
    """

    def turned(value: ir.Value) -> ir.Value:
        return op.Transpose(value, perm=[1, 0, 2, 3, 4])

    last = gradient.producer()
    if last is not None and last.op_type == "Mul":
        one, other = operand(last, 0), operand(last, 1)
        if static_dims(one)[3:] == [1, 1] and len(static_dims(other)) == 5:
            return op.Mul(op.Add(turned(one), nothing), turned(other))
    if last is not None and last.op_type == "Div" and _repeats_over_places(operand(last, 1)):
        return op.Div(op.Add(turned(operand(last, 0)), nothing), operand(last, 1))
    return op.Add(turned(gradient), nothing)


def _repeats_over_places(divisor: ir.Value) -> bool:
    """Say whether a value is one that a mean's rule divides by: of channels and places, not of the batch."""
    maker = divisor.producer()
    sizes = None if maker is None else constant_ints(maker.inputs[0])
    return maker is not None and maker.op_type == "ConstantOfShape" and sizes is not None and len(sizes) <= 3


def _give_maps(
    op: Op,
    names: _OutputNames,
    traced: TracedModel,
    picture: Picture | None,
    cams: Sequence[ir.Value],
    nothing: ir.Value,
) -> None:
    """Make outputs of each layer's maps, and of the heatmap that they make together."""
    if picture is None:
        assert traced.image.shape is not None
        size = list(traced.image.shape[2:])
        heat = heatmap(op, cams, *sides_of(op, traced.image))
    else:
        size = list(ir.Shape(["height", "width"]))
        heat = picture.placed(op, heatmap(op, cams, *picture.weights(op)))
    layers = list(traced.targets)
    for layer, cam in zip(layers, cams, strict=True):
        assert cam.shape is not None
        names.give(op.Add(cam, nothing), _named(CAM, layer, layers), list(cam.shape))
    names.give(op.Add(heat, nothing), HEATMAP, ["batch", "classes", *size])


def _grid_size(op: Op, traced: TracedModel, maps: FeatureMap) -> ir.Value | None:
    """Return the size of a grid of tokens in proportion to an image's, where that is dynamic."""
    if not traced.has_any_size:
        return None
    size = op.Shape(traced.image, start=2)
    return op.Div(op.Mul(size, list(maps.size)), list(traced.size))


class _OutputNames:
    """Makes graph outputs of values, with the names of the contract."""

    def __init__(self, graph: ir.Graph, op: Op) -> None:
        self.graph = graph
        self.op = op
        self.taken = {value.name: value for value in _values(graph)}

    def give(self, value: ir.Value, name: str, shape: Sequence[object]) -> None:
        """Name a value and make it an output; a value that is one already gets a copy."""
        if value.is_graph_output() or value.is_graph_input():
            kind = value.type
            value = self.op.Identity(value)
            value.type = kind
        self.call(value, name)
        value.shape = ir.Shape(shape)  # type: ignore[arg-type]
        self.graph.outputs.append(value)

    def call(self, value: ir.Value, name: str) -> None:
        """Give a value a name; another one that has it gets another."""
        owner = self.taken.get(name)
        if owner is not None and owner is not value and owner.name == name:
            owner.name = f"source.{name}"
        value.name = name


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]


def _check_paths(graph: ir.Graph, logits: ir.Value, targets: dict[str, ir.Value]) -> None:
    sources = upstream([logits])
    for name, target in targets.items():
        if target not in sources or logits not in downstream(graph, [target], with_gradient=True):
            raise LayerError(
                f"the logits don't depend on the layer {name!r}; choose one between the image and the logits"
            )
        if target.dtype != ir.DataType.FLOAT:
            raise LayerError(
                f"the layer {name!r} is {target.dtype}, and an explainer's outputs are float32; "
                "choose one that is, or export the network in float32"
            )
    if logits.dtype != ir.DataType.FLOAT:
        raise SourceError(
            f"the logits are {logits.dtype}, and an explainer's are float32; export the network in float32"
        )


def _merge_equal(model: ir.Model, own_nodes: Sequence[ir.Node]) -> None:
    """Merge equal nodes of those that were added.

    Its own stay apart: of two layers that put out the same, each has the gradient of its own readers.
    """
    for number, node in enumerate(own_nodes):
        node.overload = str(number)  # for the pass no two of them are of the same operator
    try:
        passes.CommonSubexpressionEliminationPass()(model)
    finally:
        for node in own_nodes:
            node.overload = ""


def _clean(model: ir.Model) -> None:
    """Remove what isn't needed, and what must not leave the exporting machine: stack traces and paths."""
    passes.TopologicalSortPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    passes.RemoveUnusedOpsetsPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    passes.NameFixPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in _values(model.graph):
        value.metadata_props.clear()
    model.graph.name = "explainer"
    model.producer_name = "onnxplain"
    model.producer_version = None
    model.doc_string = None
    model.domain = None
