"""Running an explainer: its file with onnxruntime, and the part of its graph behind a layer by reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from onnxplain.manifest import Layer
from onnxplain_export.assemble import CLASS_INDEX, EXPLAINED, INPUT, LOGITS
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.graph import (
    before_quantiser,
    downstream,
    is_float,
    is_quantised,
    skip_identities,
    taken_by_branches,
    upstream,
)
from onnxplain_export.onnx_session import session_of
from onnxplain_export.probe import Probe
from onnxplain_export.reference_graph import Arrays, ReferenceGraph


def run_file(
    path: Path | None, model: ir.Model, probe: Probe, layers: Sequence[Layer], others: Sequence[str] = ()
) -> Arrays:
    """Run the file that a model was written to on a probe, in float32 with onnxruntime's CPU provider.

    Where it isn't written, as a part of a file's model isn't, the model is run from memory.
    """
    tensors = [name for layer in layers for name in (layer.activations, layer.gradients) if name != INPUT]
    names = [LOGITS, EXPLAINED, *tensors, *others]
    session = session_of(path or model, optimised=_is_optimised(model))
    results = session.run(names, {INPUT: probe.image, CLASS_INDEX: probe.class_index})
    return dict(zip(names, results, strict=True))


class Values:
    """Values of a model as its file computes them on a probe in float32, and what follows of them in float64.

    What was asked is kept.

    Parameters
    ----------
    model, probe
        The model and what it runs on.
    known
        What its file put out.
    """

    def __init__(self, model: ir.Model, probe: Probe, known: Arrays) -> None:
        self.model = model
        self.probe = probe
        self._known = {**known, INPUT: probe.image, CLASS_INDEX: probe.class_index}
        self.weights: Arrays = {}
        """In float64, those that were used so far."""
        self._kept: dict[tuple[str, ...], Arrays] = {}
        self._exact: dict[str, Arrays] = {}

    def of(self, names: Sequence[str]) -> Arrays:
        """Return values by name, and the inputs: all of one run, that of the file where it has them all."""
        key = tuple(names)
        if key not in self._kept:
            self._kept[key] = self._evaluated(names)
        return dict(self._kept[key])

    def exact(self, layer: Layer) -> Arrays:
        """Return the logits and the gradients of a layer in float64.

        They are taken of the classes that the file explained, at its activations and decisions: which units
        are on, where a maximum stands, what a quantiser rounds to. Made anew in float64, those within
        rounding of a kink could fall otherwise, and a gradient jumps there. They are read off a copy of the
        model that puts them out too, and no number more: onnxruntime fuses nothing over an output, and what
        isn't fused rounds otherwise.
        """
        if layer.name not in self._exact:
            self._exact[layer.name] = self._by_reference(layer, self.weights, in_float64=True)
        return self._exact[layer.name]

    def rounded(self, layer: Layer) -> Arrays:
        """Return the same in the graph's own precision."""
        return self._by_reference(layer, {}, in_float64=False)

    def _by_reference(self, layer: Layer, weights: Arrays, *, in_float64: bool) -> Arrays:
        tap = tap_of(self.model, layer)
        numbers, decisions = [tap, *side_inputs(self.model, tap)], decisions_behind(self.model, tap)
        given = self.of(numbers) | self.of(decisions) | {CLASS_INDEX: self._known[EXPLAINED]}
        inputs = list(dict.fromkeys([*numbers, *decisions, CLASS_INDEX]))
        outputs = [LOGITS, layer.gradients]
        return ReferenceGraph(self.model, inputs, outputs, weights, in_float64=in_float64).run(given)

    def _evaluated(self, names: Sequence[str]) -> Arrays:
        feeds = {INPUT: self.probe.image, CLASS_INDEX: self.probe.class_index}
        if all(name in self._known for name in names):
            return {**feeds, **{name: self._known[name] for name in names}}
        asked = [name for name in names if name not in feeds]
        copy = self.model.clone()
        values = values_of(copy)
        copy.graph.outputs.extend(values[name] for name in asked if not values[name].is_graph_output())
        results = session_of(copy, optimised=_is_optimised(self.model)).run(asked, feeds)
        return {**feeds, **dict(zip(asked, results, strict=True))}


def reference_outputs(values: Values, layers: Sequence[Layer]) -> Arrays:
    """Return a graph's logits and gradients in float64, at its file's activations and decisions."""
    return {name: array for layer in layers for name, array in values.exact(layer).items()}


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


def decisions_behind(model: ir.Model, tap: str) -> list[str]:
    """Return the names of the whole numbers and truth values behind a layer that are made of others.

    All but those that rank the logits: they decide of what gradients are taken, not which these are.
    """
    graph, values = model.graph, values_of(model)
    computed = downstream(graph, [values[tap]])
    ranking = upstream([values[EXPLAINED]]) - upstream([values[LOGITS]])
    return [
        value.name
        for node in graph
        if node.op_type not in ("Shape", "Size")
        and any(given in computed and is_float(given) for given in node.inputs if given)
        for value in node.outputs
        if value.name and value.dtype is not None and not is_float(value) and value not in ranking
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


def _is_optimised(model: ir.Model) -> bool:
    """Say whether a model runs optimised, as users run it; a quantised one runs as it's written.

    Optimising, onnxruntime joins the nodes between quantisers into ones of whole numbers. These round
    otherwise, and which it joins depends on what else is asked of the file: the logits of one network then
    differ by per cents.
    """
    return not is_quantised(model.graph)
