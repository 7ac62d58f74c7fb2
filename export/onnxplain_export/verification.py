"""Verify an explainer: its rules in float64, and its file as onnxruntime runs it.

Two questions are asked, each where it can be answered sharply:

1. *Are the rules right?* In float64, on the graph itself, with onnx's reference evaluator: a small step from
   the activations in a random direction must change the logits as the gradients say. No source is needed.
   A wrong sign, axis or factor is off by per cents; a right rule by less than a millionth.
2. *Is the file right?* In float32, with onnxruntime: against PyTorch's logits and autograd's gradients where
   the source is at hand, else against the same graph in float64. Float32 rounds, and near a ReLU's zero
   rounding switches a unit on or off. That changes single elements by much and the others not at all: so the
   median error is held tightly and the total loosely.

Quantisers round too, to steps that have no slope. In float64 they are taken away, but for the cut at the ends
of their range: there the rules, which let the gradient straight through, are exact. The file is compared with
float64 at the whole numbers that it has itself. Computed anew, a number halfway between two steps could be
rounded to the other one, which moves those behind it: some layers on, most are others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from onnxplain.errors import ModelError, VerificationError
from onnxplain.manifest import METADATA_KEY, Layer, Manifest, Preprocessing
from onnxplain_export.assemble import CLASS_INDEX, EXPLAINED, IMAGE_GRADIENTS, INPUT, LOGITS
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.files import save
from onnxplain_export.float64 import Array, Arrays, Float64Graph
from onnxplain_export.graph import (
    before_quantiser,
    downstream,
    is_quantised,
    skip_identities,
    static_dims,
    taken_by_branches,
)
from onnxplain_export.ranges import Range, range_of

REFERENCE = "float64 directional derivatives"
LOGITS_TOLERANCE = 1e-4
RULES_TOLERANCE = 1e-6
MEDIAN_TOLERANCE = 1e-4
TOTAL_TOLERANCE = 2e-2
DIRECTIONS = 2
# A long step rounds least, which suits linear and smooth functions; the shorter ones are for when it crosses
# a kink, such as a ReLU's zero or a change of place of a maximum. A wrong rule agrees at none of them.
STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
GOOD_ENOUGH = 1e-8
# Where a point lies right on a kink there is no derivative; a wrong rule is wrong at the next point too.
POINTS = 3
# A difference of two logits is exact to about this part of the logits.
ROUNDING = 1e-15


@dataclass(frozen=True)
class Verification:
    """The errors that were measured, each relative.

    `rules` is that of the float64 directional derivatives; `logits` and `gradients` are relative L2 errors of
    the float32 file, `median` that of the median element over the largest.
    """

    inputs: int
    rules: float
    logits: float
    gradients: float
    median: float

    def summary(self) -> dict[str, Any]:
        """Return what goes into the manifest, to one digit: the last ones differ between machines."""
        return {
            "reference": REFERENCE,
            "inputs": self.inputs,
            "logits": _one_digit(self.logits),
            "gradients": _one_digit(self.rules),
        }


@dataclass(frozen=True)
class Probe:
    """Inputs that the export hasn't seen, and the classes to explain on them."""

    image: Array
    class_index: Array

    @classmethod
    def draw(cls, spec: Preprocessing, num_classes: int, *, any_size: bool) -> Probe:
        """Draw three images of noise and three classes each, ranks among them; always the same ones.

        Parameters
        ----------
        any_size
            The explainer takes images of any size: they have another one than it was exported at.
        """
        generator = np.random.default_rng(20)
        size = unseen_size(spec.height, spec.width) if any_size else (spec.height, spec.width)
        image = generator.standard_normal((3, spec.channels, *size)).astype(np.float32)
        classes = generator.integers(num_classes, size=(3, 3))
        classes[:, 0] = -1
        classes[:, 1] = -min(2, num_classes)
        return cls(image, classes.astype(np.int64))


def verify(path: str | os.PathLike[str]) -> Verification:
    """Verify an explainer file by itself, with no source at hand.

    Returns
    -------
    Verification
        The errors measured, all within tolerance.

    Raises
    ------
    ModelError
        The file isn't an explainer, or is damaged.
    VerificationError
        An error is outside its tolerance.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"there is no file {str(file)!r}")
    try:
        model = ir.load(file)
    except Exception as error:
        raise ModelError(f"{str(file)!r} is not an ONNX model, or is damaged ({error})") from None
    text = model.metadata_props.get(METADATA_KEY)
    if text is None:
        raise ModelError(
            f"{str(file)!r} is not an explainer; export one from its PyTorch model with: "
            "onnxplain export SOURCE -o OUT.onnx"
        )
    manifest = Manifest.from_json(text)
    image = next((value for value in model.graph.inputs if value.name == INPUT), None)
    any_size = image is not None and None in static_dims(image)[2:]
    probe = Probe.draw(manifest.input, _num_classes(model, file), any_size=any_size)
    try:
        layers = differentiated_layers(model, manifest)
        outputs = run_file(file, model, probe, layers)
        layers = sized_as(layers, outputs)
        rules = check_rules(model, layers, probe)
        expected = float64_outputs(model, layers, probe)
    except VerificationError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes its readers raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{str(file)!r} doesn't run as its manifest says ({reason}); export it again"
        ) from error
    return compare(probe, rules, outputs, expected, layers)


def differentiated_layers(model: ir.Model, manifest: Manifest) -> list[Layer]:
    """Return what a file has gradients of: its target layers, and the image where it has those."""
    layers = list(manifest.layers)
    if any(value.name == IMAGE_GRADIENTS for value in model.graph.outputs):
        spec = manifest.input
        layers.append(image_layer(spec.channels, spec.height, spec.width))
    return layers


def image_layer(channels: int, height: int, width: int) -> Layer:
    """Return the image in the role of a layer: what it puts out is itself."""
    return Layer(INPUT, INPUT, IMAGE_GRADIENTS, channels, height, width)


def unseen_size(height: int, width: int) -> tuple[int, int]:
    """Return another size, of other proportions, that networks which halve it five times take as well."""
    return height + 32, width + 64


def sized_as(layers: Sequence[Layer], outputs: Arrays) -> list[Layer]:
    """Return layers with the height and width that their maps have in a run."""
    return [
        replace(layer, height=gradients.shape[-2], width=gradients.shape[-1])
        for layer in layers
        for gradients in [outputs[layer.gradients]]
    ]


def _num_classes(model: ir.Model, file: Path) -> int:
    shape = {value.name: value.shape for value in model.graph.outputs}.get(LOGITS)
    if shape is None or len(shape) != 2 or not isinstance(shape[1], int):
        raise ModelError(
            f"{str(file)!r} has no output {LOGITS!r} of [batch, num_classes]; export the model again"
        )
    return shape[1]


def run_file(path: Path, model: ir.Model, probe: Probe, layers: Sequence[Layer]) -> Arrays:
    """Run the file that a model was written to on a probe, in float32 with onnxruntime's CPU provider."""
    tensors = [name for layer in layers for name in (layer.activations, layer.gradients) if name != INPUT]
    names = [LOGITS, EXPLAINED, *tensors]
    session = _session(path, model)
    results = session.run(names, {INPUT: probe.image, CLASS_INDEX: probe.class_index})
    return dict(zip(names, results, strict=True))


def compare(
    probe: Probe, rules: float, outputs: Arrays, expected: Mapping[str, Array], layers: Sequence[Layer]
) -> Verification:
    """Compare a file's outputs with those expected, and hold all errors against their tolerances.

    Activations are compared where they are expected.

    Raises
    ------
    VerificationError
        An error is outside its tolerance.
    """
    _check_selection(probe, outputs)
    gradients = [(outputs[layer.gradients], expected[layer.gradients]) for layer in layers]
    activations = [
        relative_error(outputs[layer.activations], expected[layer.activations])
        for layer in layers
        if layer.activations in expected
    ]
    measured = Verification(
        inputs=len(outputs[LOGITS]),
        rules=rules,
        logits=relative_error(outputs[LOGITS], expected[LOGITS]),
        gradients=max(relative_error(*pair) for pair in gradients),
        median=max(median_error(*pair) for pair in gradients),
    )
    for what, error, tolerance in (
        (
            "the gradient rules differ from differences of the logits in float64",
            measured.rules,
            RULES_TOLERANCE,
        ),
        ("the logits differ from the source's", measured.logits, LOGITS_TOLERANCE),
        ("the activations differ from the source's", max(activations, default=0.0), LOGITS_TOLERANCE),
        ("the gradients' median element differs from the reference", measured.median, MEDIAN_TOLERANCE),
        ("the gradients differ from the reference", measured.gradients, TOTAL_TOLERANCE),
    ):
        if not error <= tolerance:
            raise VerificationError(
                f"{what} by {error:.1e} (relative; at most {tolerance:.0e} is rounding): a gradient rule is "
                "wrong, or the network jumps there; another layer may do, and please report the model"
            )
    return measured


def _check_selection(probe: Probe, outputs: Arrays) -> None:
    """Check that the file explained the classes that it was asked for.

    A rank is right if the logit of its class is the one of that rank: of equal logits, either class will do.
    """
    if not np.isfinite(outputs[LOGITS]).all():
        raise VerificationError("the logits are not finite on random images; check the model's weights")
    explained = outputs[EXPLAINED]
    logits = np.take_along_axis(outputs[LOGITS], explained, axis=1)
    sorted_logits = -np.sort(-outputs[LOGITS], axis=1)
    ranked = np.take_along_axis(sorted_logits, np.maximum(-1 - probe.class_index, 0), axis=1)
    right = np.where(probe.class_index < 0, logits == ranked, explained == probe.class_index)
    if not right.all():
        raise VerificationError(
            "the file explains other classes than it is asked for; please report the model"
        )


def check_rules(model: ir.Model, layers: Sequence[Layer], probe: Probe) -> float:
    """Compare the gradients with central differences of the logits, in float64.

    Only the part of the graph behind the target layer is evaluated in float64. What it takes from the part
    before (the activations, and values that pass the layer by) is computed in float32 by onnxruntime and
    widened: any point is as good as another to test a derivative at. All but some: behind a ReLU many
    activations are exactly 0, and where several are the maximum of a window there is no derivative. Hence the
    point is moved a little, at random.

    Returns
    -------
    float
        The largest error over layers, directions, images and classes, relative to the root mean square of
        such derivatives over random directions.
    """
    weights: Arrays = {}
    return max(_rules_error(model, layer, probe, weights) for layer in layers)


def _rules_error(model: ir.Model, layer: Layer, probe: Probe, weights: Arrays) -> float:
    tap = _tap(model, layer)
    scores = _scores(model)
    inputs = [tap, *_side_inputs(model, tap)]
    values = _evaluate(model, inputs, probe)
    outputs = [scores, EXPLAINED, layer.gradients]
    whole = Float64Graph(model, [*inputs, CLASS_INDEX], outputs, weights)
    forward = Float64Graph(model, inputs, [scores], weights)
    generator = np.random.default_rng(1)
    maps = FeatureMap.of_layer(layer)
    folded = (len(probe.image), maps.channels, maps.height, maps.width)
    activations = values[tap].astype(np.float64)
    size = max(float(np.sqrt(np.mean(np.square(activations)))), 1e-3)
    possible = range_of(_values(model)[tap])
    best = np.inf
    for _ in range(POINTS):
        moved = activations + 0.01 * size * maps.unfold(generator.standard_normal(folded))
        values[tap] = _inside(moved, possible)
        point = whole.run({**values, CLASS_INDEX: probe.class_index})
        found = [point[name] for name in outputs]
        directions = size * generator.standard_normal((DIRECTIONS, *folded))
        errors = [
            _errors_along(direction, maps.unfold(direction), forward, values, tap, *found)
            for direction in directions
        ]
        if np.isnan(errors).all():
            raise VerificationError(
                f"nothing could be checked at {layer.name!r}: on random images every gradient is zero, or "
                "too small beside the logits; choose a later layer, or check the model's weights"
            )
        best = min(best, float(np.nanmax(errors)))
        if best <= RULES_TOLERANCE:
            break
    return best


def _errors_along(
    direction: Array,
    laid_out: Array,
    forward: Float64Graph,
    values: Arrays,
    tap: str,
    scores: Array,
    explained: Array,
    gradients: Array,
) -> Array:
    """Return the relative errors of the derivatives along a direction, [batch, classes].

    Each is the best over the steps. It is NaN where no step can tell: where the difference of the logits is
    lost in the rounding of the logits themselves.
    """
    predicted = np.einsum("bkchw,bchw->bk", gradients, direction)
    # The root mean square of such a derivative over random directions.
    typical = np.sqrt(np.square(gradients).sum(axis=(2, 3, 4)) * np.mean(np.square(direction)))
    best = np.full(predicted.shape, np.nan)
    for step in STEPS:
        measured = _difference(forward, values, tap, laid_out, step, explained)
        noise = ROUNDING * np.abs(scores).max() / step
        scale = np.maximum(np.maximum(typical, np.abs(measured)), np.finfo(np.float64).tiny)
        error = np.abs(predicted - measured) / scale
        best = np.fmin(best, np.where(noise <= RULES_TOLERANCE * scale, error, np.nan))
        if np.nanmax(best, initial=0.0) <= GOOD_ENOUGH and not np.isnan(best).any():
            break
    return best


def _inside(numbers: Array, possible: Range) -> Array:
    """Return numbers with those outside a range mirrored at its end, whose cut they would meet."""
    if np.isfinite(possible.low):
        numbers = possible.low + np.abs(numbers - possible.low)
    if np.isfinite(possible.high):
        numbers = possible.high - np.abs(possible.high - numbers)
    return numbers


def float64_outputs(model: ir.Model, layers: Sequence[Layer], probe: Probe) -> Arrays:
    """Return the logits and gradients that the graph has in float64, from float32 activations.

    The numbers that quantisers put out are those of float32, too.
    """
    outputs: Arrays = {}
    weights: Arrays = {}
    quantised = _quantised(model)
    for layer in layers:
        tap = _tap(model, layer)
        inputs = list(dict.fromkeys([tap, *_side_inputs(model, tap), *quantised]))
        part = Float64Graph(model, [*inputs, CLASS_INDEX], [LOGITS, layer.gradients], weights)
        outputs |= part.run({**_evaluate(model, inputs, probe), CLASS_INDEX: probe.class_index})
    return outputs


def relative_error(actual: Array, expected: Array) -> float:
    """Return the relative L2 error; not a number where either isn't."""
    difference = np.linalg.norm((actual - expected).astype(np.float64))
    size = np.linalg.norm(expected.astype(np.float64))
    return float(difference if size == 0 else difference / size)


def median_error(actual: Array, expected: Array) -> float:
    """Return the median error over the elements that aren't zero, relative to the largest of them."""
    nonzero = (expected != 0) | (actual != 0)
    if not nonzero.any():
        return 0.0
    return float(np.median(np.abs(actual - expected)[nonzero]) / np.abs(expected).max())


def _tap(model: ir.Model, layer: Layer) -> str:
    """Return the name of the value that the nodes behind a layer take.

    Where two layers put out the same value, the second one's output is a copy, which nothing reads.
    """
    if layer.activations == INPUT:
        return INPUT
    output = next(value for value in model.graph.outputs if value.name == layer.activations)
    name = skip_identities(FeatureMap.of_layer(layer).unfolded(skip_identities(output))).name
    assert name is not None
    return name


def _values(model: ir.Model) -> dict[str | None, ir.Value]:
    computed = (value for node in model.graph for value in node.outputs)
    return {value.name: value for value in (*model.graph.inputs, *computed)}


def _scores(model: ir.Model) -> str:
    """Return the name of what the gradients are those of: the logits, before they are quantised."""
    name = before_quantiser(skip_identities(_values(model)[LOGITS])).name
    assert name is not None
    return name


def _quantised(model: ir.Model) -> list[str]:
    """Return the names of the whole numbers that quantisers make of what depends on the image."""
    graph = model.graph
    computed = downstream(graph, [_values(model)[INPUT]])
    outputs = (node.outputs[0] for node in graph if node.op_type == "QuantizeLinear")
    return [value.name for value in outputs if value in computed and value.name is not None]


def _side_inputs(model: ir.Model, tap: str) -> list[str]:
    """Return the values that nodes behind the layer take from before it, other than constants."""
    if tap == INPUT:
        return []
    graph, values = model.graph, _values(model)
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


def _evaluate(model: ir.Model, names: list[str], probe: Probe) -> Arrays:
    """Evaluate values of a model in float32, as its file does."""
    found = {INPUT: probe.image}
    computed = [name for name in names if name not in found]
    if computed:
        part = ir.convenience.extract(model.graph, [INPUT], computed)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "part.onnx"
            save(ir.Model(part, ir_version=model.ir_version), file)
            results = _session(file, model).run(computed, found)
        found.update(zip(computed, results, strict=True))
    return {name: found[name] for name in names}


def _session(file: Path, model: ir.Model) -> onnxruntime.InferenceSession:
    """Load the file of a model or of a part of it.

    A quantised one runs as it's written. Optimising, onnxruntime joins the nodes between quantisers into ones
    of whole numbers. These round otherwise, and which it joins depends on what else is asked of the file: the
    logits of one network then differ by per cents.
    """
    options = onnxruntime.SessionOptions()
    if is_quantised(model.graph):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Beside PyTorch's threads, waiting ones of onnxruntime would only take time from them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised, and need not be on stderr too
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _difference(
    forward: Float64Graph, values: Arrays, name: str, direction: Array, step: float, classes: Array
) -> Array:
    """Return the central difference of the explained logits along a direction, [batch, classes]."""
    (ahead,), (behind,) = (
        forward.run({**values, name: values[name] + sign * step * direction}).values() for sign in (1, -1)
    )
    return np.take_along_axis((ahead - behind) / (2 * step), classes, axis=1)


def _one_digit(number: float) -> float:
    return float(f"{number:.0e}")
