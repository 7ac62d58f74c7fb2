"""Running an explainer: its file with onnxruntime, and the part of its graph behind a layer by reference."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from onnxplain.manifest import Layer
from onnxplain_export.assemble import CLASS_INDEX, EXPLAINED, INPUT, LOGITS
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.files import save
from onnxplain_export.graph import (
    before_quantiser,
    downstream,
    is_float,
    is_quantised,
    skip_identities,
    taken_by_branches,
)
from onnxplain_export.onnx_session import session_of
from onnxplain_export.probe import Probe
from onnxplain_export.reference_graph import Arrays, ReferenceGraph


def run_file(
    path: Path, model: ir.Model, probe: Probe, layers: Sequence[Layer], others: Sequence[str] = ()
) -> Arrays:
    """Run the file that a model was written to on a probe, in float32 with onnxruntime's CPU provider."""
    tensors = [name for layer in layers for name in (layer.activations, layer.gradients) if name != INPUT]
    names = [LOGITS, EXPLAINED, *tensors, *others]
    session = _session(path, model)
    results = session.run(names, {INPUT: probe.image, CLASS_INDEX: probe.class_index})
    return dict(zip(names, results, strict=True))


def reference_outputs(
    model: ir.Model, layers: Sequence[Layer], probe: Probe, *, in_float64: bool = True
) -> Arrays:
    """Return a graph's logits and gradients by reference, at its file's activations and decisions.

    Its decisions are which units are on, where a maximum stands, what a quantiser rounds to. Made anew in
    float64, those within rounding of a kink could fall otherwise, and a gradient jumps there. They are read
    off a copy of the file that puts them out too, and no number more: onnxruntime fuses nothing over an
    output, and what isn't fused rounds otherwise.
    """
    outputs: Arrays = {}
    weights: Arrays = {}
    for layer in layers:
        tap = tap_of(model, layer)
        numbers, decisions = [tap, *side_inputs(model, tap)], _decisions(model, tap)
        inputs = list(dict.fromkeys([*numbers, *decisions, CLASS_INDEX]))
        given = evaluate(model, numbers, probe) | evaluate(model, decisions, probe)
        part = ReferenceGraph(model, inputs, [LOGITS, layer.gradients], weights, in_float64=in_float64)
        outputs |= part.run(given)
    return outputs


def tap_of(model: ir.Model, layer: Layer) -> str:
    """Return the name of the value that the nodes behind a layer take.

    Where two layers put out the same value, the second one's output is a copy, which nothing reads.
    """
    if layer.activations == INPUT:
        return INPUT
    output = next(value for value in model.graph.outputs if value.name == layer.activations)
    name = skip_identities(FeatureMap.of_layer(layer).unfolded(skip_identities(output))).name
    assert name is not None
    return name


def values_of(model: ir.Model) -> dict[str | None, ir.Value]:
    """Return the inputs of a model and what its nodes put out, by name."""
    computed = (value for node in model.graph for value in node.outputs)
    return {value.name: value for value in (*model.graph.inputs, *computed)}


def scores_of(model: ir.Model) -> str:
    """Return the name of what the gradients are those of: the logits, before they are quantised."""
    name = before_quantiser(skip_identities(values_of(model)[LOGITS])).name
    assert name is not None
    return name


def _decisions(model: ir.Model, tap: str) -> list[str]:
    """Return the names of the whole numbers and truth values behind a layer that are made of others."""
    graph = model.graph
    computed = downstream(graph, [values_of(model)[tap]])
    return [
        value.name
        for node in graph
        if node.op_type not in ("Shape", "Size")
        and any(given in computed and is_float(given) for given in node.inputs if given)
        for value in node.outputs
        if value.name and value.dtype is not None and not is_float(value)
    ]


def side_inputs(model: ir.Model, tap: str) -> list[str]:
    """Return the values that nodes behind the layer take from before it, other than constants."""
    if tap == INPUT:
        return []
    graph, values = model.graph, values_of(model)
    behind = downstream(graph, [values[tap]])
    before = downstream(graph, [values[INPUT]]) - behind
    crossing = (
        value.name
        for node in graph
        if any(output in behind for output in node.outputs)
        for value in [*node.inputs, *taken_by_branches(node)]
        if value in before
    )
    return [name for name in dict.fromkeys(crossing) if name is not None]


def evaluate(model: ir.Model, names: Sequence[str], probe: Probe) -> Arrays:
    """Evaluate values of a model as its file does, in float32: they are asked for beside its outputs."""
    feeds = {INPUT: probe.image, CLASS_INDEX: probe.class_index}
    asked = [name for name in names if name not in feeds]
    copy = model.clone()
    values = values_of(copy)
    copy.graph.outputs.extend(values[name] for name in asked if not values[name].is_graph_output())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "copy.onnx"
        save(copy, file)
        results = _session(file, model).run(asked, feeds) if asked else []
    return {**feeds, **dict(zip(asked, results, strict=True))}


def _session(file: Path, model: ir.Model) -> onnxruntime.InferenceSession:
    """Load the file of a model, optimised as users load it; but a quantised one as it's written.

    Optimising, onnxruntime joins the nodes between quantisers into ones of whole numbers. These round
    otherwise, and which it joins depends on what else is asked of the file: the logits of one network then
    differ by per cents.
    """
    return session_of(file, optimised=not is_quantised(model.graph))
