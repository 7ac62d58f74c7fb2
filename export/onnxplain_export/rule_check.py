"""Are the gradient rules right? On the graph itself, in float64, against central differences of the logits.

A small step from the activations in a random direction must change the logits as the gradients say. In
float64, with onnx's reference evaluator, a right rule is off by less than a millionth, and a wrong sign, axis
or factor by per cents. No source is needed.

Networks have kinks, such as a ReLU's zero or a change of place of a maximum, and a step across one says
nothing about the slope. The deeper the layer, the more there are to cross: behind `layer1` of resnet50 there
are millions of units. So steps of several lengths are tried, and where none along a first direction agrees
with the gradients, several directions at several points, until two of them do; for each image and each class.
A right rule needs directions that cross no kink. A wrong one agrees in a random direction by chance alone,
about once in a million times, and would have to do so for all images, whose directions are others, and
classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from onnxplain.errors import VerificationError
from onnxplain.manifest import Layer
from onnxplain_export.assemble import CLASS_INDEX, EXPLAINED, LOGITS
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.ranges import Range, range_of
from onnxplain_export.reference_graph import Array, Arrays, ReferenceGraph
from onnxplain_export.running import (
    Values,
    decisions_behind,
    scores_of,
    side_inputs,
    tap_of,
    values_of,
)

TOLERANCE = 1e-6
# The longer a step, the less the logits' rounding counts, but the more kinks it crosses.
STEPS = (1e-5, 1e-6, 1e-7, 1e-8, 1e-4)
STEPS_BESIDE_KINKS = (1e-6, 1e-7, 1e-8, 1e-5, 1e-4)
GOOD_ENOUGH = 1e-7
POINTS = 2
DIRECTIONS = 4
# A difference of two logits is exact to about this part of the logits.
ROUNDING = 1e-15


def check_rules(values: Values, layers: Sequence[Layer]) -> float:
    """Compare the gradients with central differences of the logits, in float64.

    Only the part of the graph behind the target layer is evaluated in float64. What it takes from the part
    before (the activations, and values that pass the layer by) is computed in float32 by onnxruntime and
    widened: any point is as good as another to test a derivative at. All but some: behind a ReLU many
    activations are exactly 0, and where several are the maximum of a window there is no derivative. Hence the
    points are moved a little, at random, unless nothing behind the layer depends on such decisions: then the
    gradients at the file's own activations are those that the file is compared with anyway.

    Returns
    -------
    float
        The largest error over layers, images and classes, each along a direction that agrees, and
        relative to the root mean square of such derivatives over random directions.

    Raises
    ------
    VerificationError
        The gradients of a layer are too small to be checked. Where they are zero throughout, and no
        difference of the logits says otherwise, there is no error.
    """
    return max(_rules_error(values, layer) for layer in layers)


@dataclass(frozen=True)
class _Point:
    """Where derivatives are taken, and what the graph says there."""

    values: Arrays
    """What the part of the graph behind the layer takes."""
    scores: Array
    explained: Array
    gradients: Array


def _rules_error(values: Values, layer: Layer) -> float:
    model = values.model
    tap = tap_of(model, layer)
    inputs = [tap, *side_inputs(model, tap)]
    forward = ReferenceGraph(model, inputs, [scores_of(model)], values.weights)
    generator = np.random.default_rng(1)
    size = _size(values.of(inputs)[tap])
    maps = FeatureMap.of_layer(layer)
    folded = (len(values.probe.image), maps.channels, maps.height, maps.width)
    steps = list(STEPS_BESIDE_KINKS if decisions_behind(model, tap) else STEPS)
    errors: list[Array] = []
    all_zero = True
    for point in islice(_points(values, layer, generator), POINTS):
        all_zero = all_zero and not point.gradients.any()
        for _ in range(DIRECTIONS):
            direction = size * generator.standard_normal(folded)
            errors.append(_errors_along(direction, maps.unfold(direction), forward, tap, point, steps))
            if _largest_agreed(errors) <= TOLERANCE:
                return _largest_agreed(errors)
    if np.isnan(errors).all():
        if all_zero:  # and so are the differences, but for the logits' rounding
            return 0.0
        raise VerificationError(
            f"nothing could be checked at {layer.name!r}: on random images every gradient is too small "
            "beside the logits; choose a later layer, or check the model's weights"
        )
    return _largest_agreed(errors)


def _size(activations: Array) -> float:
    return max(float(np.sqrt(np.mean(np.square(activations, dtype=np.float64)))), 1e-3)


def _points(values: Values, layer: Layer, generator: np.random.Generator) -> Iterator[_Point]:
    """Yield the file's own activations, where there are no kinks to avoid, and then some near them."""
    model, probe = values.model, values.probe
    tap, scores = tap_of(model, layer), scores_of(model)
    inputs = [tap, *side_inputs(model, tap)]
    given = values.of(inputs)
    if not decisions_behind(model, tap):
        own = values.exact(layer)
        yield _Point(given, own[LOGITS], values.of([EXPLAINED])[EXPLAINED], own[layer.gradients])
    whole = ReferenceGraph(
        model, [*inputs, CLASS_INDEX], [scores, EXPLAINED, layer.gradients], values.weights
    )
    activations = given[tap].astype(np.float64)
    maps = FeatureMap.of_layer(layer)
    folded = (len(probe.image), maps.channels, maps.height, maps.width)
    possible = range_of(values_of(model)[tap])
    while True:
        noise = maps.unfold(generator.standard_normal(folded))
        moved = {**given, tap: _inside(activations + 0.01 * _size(activations) * noise, possible)}
        found = whole.run({**moved, CLASS_INDEX: probe.class_index})
        yield _Point(moved, found[scores], found[EXPLAINED], found[layer.gradients])


def _largest_agreed(errors: Sequence[Array]) -> float:
    """Return the largest error over images and classes: of each along the first direction, if that agrees.

    Else it is the second smallest over the directions: of many, one agrees by chance more easily.
    """
    smallest = np.sort([*errors, np.full_like(errors[0], np.nan)], axis=0)  # what isn't a number comes last
    agreed = np.where(errors[0] <= TOLERANCE, errors[0], smallest[1])
    measured = ~np.isnan(smallest[0])
    if not measured.any() or np.isnan(agreed[measured]).any():
        return np.inf
    return float(agreed[measured].max())


def _errors_along(
    direction: Array, laid_out: Array, forward: ReferenceGraph, tap: str, point: _Point, steps: list[float]
) -> Array:
    """Return the relative errors of the derivatives along a direction, [batch, classes].

    Each is the best over the steps. It is NaN where no step can tell: where the difference of the logits is
    lost in the rounding of the logits themselves. The step that told best is the first to be tried again.
    """
    predicted = np.einsum("bkchw,bchw->bk", point.gradients, direction)
    # The root mean square of such a derivative over random directions.
    typical = np.sqrt(np.square(point.gradients).sum(axis=(2, 3, 4)) * np.mean(np.square(direction)))
    best = np.full(predicted.shape, np.nan)
    found: dict[float, Array] = {}
    for step in steps:
        measured = _difference(forward, point.values, tap, laid_out, step, point.explained)
        noise = ROUNDING * np.abs(point.scores).max() / step
        scale = np.maximum(np.maximum(typical, np.abs(measured)), np.finfo(np.float64).tiny)
        error = np.nan_to_num(np.abs(predicted - measured) / scale, nan=np.inf)
        found[step] = np.where(noise <= TOLERANCE * scale, error, np.nan)
        best = np.fmin(best, found[step])
        if np.nanmax(best, initial=0.0) <= GOOD_ENOUGH and not np.isnan(best).any():
            break
    steps.sort(key=lambda step: -np.count_nonzero(found.get(step, np.nan) <= TOLERANCE))
    return best


def _inside(numbers: Array, possible: Range) -> Array:
    """Return numbers with those outside a range mirrored at its end, whose cut they would meet."""
    if np.isfinite(possible.low):
        numbers = possible.low + np.abs(numbers - possible.low)
    if np.isfinite(possible.high):
        numbers = possible.high - np.abs(possible.high - numbers)
    return numbers


def _difference(
    forward: ReferenceGraph, values: Arrays, name: str, direction: Array, step: float, classes: Array
) -> Array:
    """Return the central difference of the explained logits along a direction, [batch, classes]."""
    (ahead,), (behind,) = (
        forward.run({**values, name: values[name] + sign * step * direction}).values() for sign in (1, -1)
    )
    return np.take_along_axis((ahead - behind) / (2 * step), classes, axis=1)
