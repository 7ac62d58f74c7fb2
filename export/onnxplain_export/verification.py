"""Verify an explainer: its rules in float64, and its file as onnxruntime runs it.

Two questions are asked, each where it can be answered sharply:

1. *Are the rules right?* In float64, on the graph itself, against differences of the logits (`rule_check`).
2. *Is the file right?* In float32, with onnxruntime, against the same graph in float64 and, where the source
   is at hand, against the source: its logits, and the gradients by PyTorch's autograd.

Float32 rounds, and near a ReLU's zero rounding switches a unit on or off: single gradients then jump, which
is nobody's fault. At `layer3` of resnet50 PyTorch in float32 is 6e-3 (relative L2) from itself in float64. So
the file is held tightly against float64 where that takes the file's own decisions: which units are on, where
maxima stand, what quantisers round to. What is left is the rounding of sums; a wrong kernel or graph would
show. PyTorch makes decisions of its own, so autograd is held loosely, and the median image counts: it would
show another function or layer, or a backward pass that a model defines itself.

Some networks lose more to rounding than others. Where an error is larger than usual, it is asked how far
rounding moves what is expected: the gradients of the graph in float32 by reference from those in float64, and
PyTorch's logits and activations from its own in float64.

A file in half precision is verified widened to float32, and so with its rounded weights alone: onnxruntime's
CPU provider runs its nodes in float32 where it has no others, and whether it rounds between them depends on
what else is asked of it. How far rounding brings the logits is asked apart.

Quantisers round to steps that have no slope. For the check of the rules they are taken away, but for the cut
at the ends of their range: there the rules, which let the gradient straight through, are exact.
"""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.errors import ModelError, VerificationError
from onnxplain.heatmap import heatmap
from onnxplain.manifest import IMAGE_GRADIENTS, METADATA_KEY, Layer, Manifest
from onnxplain.maps import METHODS
from onnxplain_export import rule_check
from onnxplain_export.assemble import (
    CLASS_INDEX,
    EXPLAINED,
    HEATMAP,
    INPUT,
    LOGITS,
)
from onnxplain_export.graph import static_dims
from onnxplain_export.half_precision import as_float32, logits_in_half
from onnxplain_export.maps import check_emitted
from onnxplain_export.pixels_check import check_pixels, explainer_inside
from onnxplain_export.probe import Probe
from onnxplain_export.reference_graph import Array, Arrays, ReferenceGraph
from onnxplain_export.running import Values, reference_outputs, run_file

REFERENCE = "float64 directional derivatives"
LOGITS_TOLERANCE = 1e-4
GRADIENTS_TOLERANCE = 1e-4
HEATMAP_TOLERANCE = 1e-4
# Where rounding moves what is expected by more: so many times as far, as kernels round each in their own way,
# but not further than this. Gradients are compared at the file's own activations, and lose less.
AS_FAR = 10
MOST_ROUNDING = 5e-2
MOST_ROUNDING_OF_GRADIENTS = 1e-2
# Rounding to float16 moves the logits by less: networks differ in what they make of it.
MOST_ROUNDING_IN_HALF = 5e-2
AUTOGRAD_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Verification:
    """The errors that were measured, each relative.

    `rules` is that of the float64 directional derivatives. The others are relative L2 errors of the float32
    file: `logits` from the source's, `gradients` from the same graph in float64, `autograd` from PyTorch's
    gradients, of the median image; None without PyTorch. `zero` are the layers whose gradients are zero for
    every class on all images: of these nothing was measured. The errors of gradients are those of `measured`,
    the other layers.
    """

    inputs: int
    rules: float
    logits: float
    gradients: float
    autograd: float | None
    measured: tuple[str, ...]
    zero: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return what goes into the manifest, to one digit: the last ones differ between machines."""
        return {
            "reference": REFERENCE,
            "inputs": self.inputs,
            "logits": _one_digit(self.logits),
            "gradients": _one_digit(self.rules) if self.measured else None,
            **({"zero": list(self.zero)} if self.zero else {}),
        }

    def warn_of_zeros(self, stacklevel: int) -> None:
        """Warn, in one line, where gradients are zero, and say what that means."""
        if not self.zero:
            return
        if self.measured:
            meaning = (
                "maps will be blank there, and these gradients weren't verified; nothing from there reaches "
                "the logits on such images"
            )
        else:
            meaning = (
                "maps will be blank, and no gradient was verified; usually the head isn't trained and its "
                "weights are zero: load trained weights"
            )
        zero = " and ".join(self.zero)
        warnings.warn(
            f"at {zero} every class's gradients are zero on random images, so that {meaning}",
            stacklevel=stacklevel + 1,
        )


def verify(path: str | os.PathLike[str]) -> Verification:
    """Verify an explainer file by itself, with no source at hand.

    Returns
    -------
    Verification
        The errors measured, all within tolerance. Where gradients are zero throughout, a warning says so.

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
            f"{str(file)!r} is a plain ONNX model, not an explainer; make one of it, without PyTorch: "
            f"onnxplain export {shlex.quote(str(file))} -o explainer.onnx"
        )
    manifest = Manifest.from_json(text)
    if manifest.heatmap is not None:
        check_emitted(manifest.heatmap, {layer.name: layer.head for layer in manifest.layers})
    if (manifest.heatmap is None) == any(value.name == HEATMAP for value in model.graph.outputs):
        raise ModelError(f"{str(file)!r} doesn't have the heatmaps that its manifest says; export it again")
    image = next((value for value in model.graph.inputs if value.name == INPUT), None)
    any_size = image is not None and None in static_dims(image)[2:] and not manifest.pixels
    probe = Probe.draw(manifest.input, _num_classes(model, file), any_size=any_size)
    try:
        verification = verify_model(file, model, manifest, probe)
    except VerificationError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes its readers raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{str(file)!r} doesn't run as its manifest says ({reason}); export it again"
        ) from error
    verification.warn_of_zeros(stacklevel=2)
    return verification


def verify_model(file: Path, model: ir.Model, manifest: Manifest, probe: Probe) -> Verification:
    """Verify an explainer whose file is read, or was just written.

    Raises
    ------
    VerificationError
        An error is outside its tolerance.
    """
    wide = as_float32(model)
    wide_file = file if wide is model else None
    inside = explainer_inside(wide, manifest)
    verification = _verify(wide_file if inside is model else None, inside, manifest, probe)
    if manifest.pixels:
        check_pixels(wide_file, wide, inside, manifest)
    if wide is not model:
        logits = run_file(None, inside, probe, [])[LOGITS]
        _verify_half(file, model, manifest, probe, logits)
    return verification


def _verify(file: Path | None, model: ir.Model, manifest: Manifest, probe: Probe) -> Verification:
    layers = differentiated_layers(model, manifest)
    outputs = run_file(file, model, probe, layers, map_outputs(manifest))
    layers = sized_as(layers, probe, outputs)
    values = Values(model, probe, outputs)
    rules = rule_check.check_rules(values, layers)
    own = reference_outputs(values, layers)
    verification = compare(
        probe,
        rules,
        outputs,
        own,
        {LOGITS: own[LOGITS]},
        layers,
        lambda: rounding_of_outputs(values, layers, own),
    )
    check_heatmap(model, probe, manifest, outputs)
    return verification


def _verify_half(file: Path, model: ir.Model, manifest: Manifest, probe: Probe, expected: Array) -> None:
    """Check that rounding to float16 leaves the logits near those expected, in the file and by reference."""
    inside = explainer_inside(model, manifest)
    check_half(run_file(file if inside is model else None, inside, probe, [])[LOGITS], expected)
    check_half(logits_in_half(inside, probe), expected[:1])


def check_half(logits: Array, expected: Array) -> float:
    """Return how far logits in half precision are from others.

    Raises
    ------
    VerificationError
        It is further than rounding brings them.
    """
    error = relative_error(logits, expected)
    _hold(
        "in float16 the logits are off",
        error,
        MOST_ROUNDING_IN_HALF,
        "the network needs float32; leave fp16 out",
    )
    return error


def map_outputs(manifest: Manifest) -> list[str]:
    """Return the names of the maps and heatmaps, where there are any, of an explainer of images."""
    if manifest.heatmap is None:
        return []
    cams = [manifest.cam(layer) for layer in manifest.layers]
    return cams if manifest.pixels else [*cams, HEATMAP]


def check_heatmap(model: ir.Model, probe: Probe, manifest: Manifest, outputs: Arrays) -> None:
    """Check that a file's maps and heatmaps, where it has any, are the runtime's.

    In float64 the nodes must agree with the runtime's functions. In float32 the file may be as far from these
    as numpy is, ten times over: of some layers a map is nothing but rounding, such as HiResCAM's before a
    normalisation of each place, where activations times gradients add up to 0.

    Raises
    ------
    VerificationError
        They aren't.
    """
    names = map_outputs(manifest)
    if not names:
        return
    given = [name for layer in manifest.layers for name in (layer.activations, layer.gradients)]
    feeds = {INPUT: probe.image, CLASS_INDEX: probe.class_index}
    feeds |= {name: outputs[name] for name in (LOGITS, *given)}
    emitted = ReferenceGraph(model, list(feeds), names, {}).run(feeds)
    rounded, exact = (_maps(manifest, outputs, dtype) for dtype in (np.float32, np.float64))
    for name, lossy, precise in zip(names, rounded, exact, strict=True):
        _hold(
            f"the nodes of {name} don't compute the runtime's",
            relative_error(emitted[name], precise),
            HEATMAP_TOLERANCE,
            "please report the model",
        )
        _hold(
            f"the file's {name} isn't the runtime's",
            relative_error(outputs[name], precise),
            max(HEATMAP_TOLERANCE, AS_FAR * relative_error(lossy, precise)),
            "onnxruntime computes something else here; try another version, and please report the model",
        )


def _maps(manifest: Manifest, outputs: Arrays, dtype: type[np.floating[Any]]) -> list[Array]:
    """Return the maps of each layer and the heatmaps, as the runtime makes them of a file's outputs."""
    assert manifest.heatmap is not None
    maps = [
        METHODS[manifest.heatmap].maps(
            outputs[layer.activations].astype(dtype), outputs[layer.gradients].astype(dtype)
        )
        for layer in manifest.layers
    ]
    if HEATMAP not in outputs:
        return maps
    heat = np.empty_like(outputs[HEATMAP])
    for place in np.ndindex(heat.shape[:2]):
        heat[place] = heatmap([map_[place] for map_ in maps], heat.shape[2:])
    return [*maps, heat]


def rounding_of_outputs(
    values: Values, layers: Sequence[Layer], exact: Mapping[str, Array]
) -> dict[str, float]:
    """Return how far logits and gradients by reference are, in the graph's own precision, from float64."""
    rounded = {name: array for layer in layers for name, array in values.rounded(layer).items()}
    names = [LOGITS, *(layer.gradients for layer in layers)]
    return {name: relative_error(rounded[name], exact[name]) for name in names}


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


def sized_as(layers: Sequence[Layer], probe: Probe, outputs: Arrays) -> list[Layer]:
    """Return layers with the height and width that their maps have in a run.

    Raises
    ------
    VerificationError
        Gradients have another shape than what they are those of.
    """
    sized = []
    for layer in layers:
        activations, gradients = {INPUT: probe.image, **outputs}[layer.activations], outputs[layer.gradients]
        if gradients.shape != (*probe.class_index.shape, *activations.shape[1:]):
            raise VerificationError(
                f"the gradients of {layer.name!r} have the shape {gradients.shape}, and its activations "
                f"{activations.shape}: a gradient rule is wrong; please report the model"
            )
        sized.append(replace(layer, height=activations.shape[2], width=activations.shape[3]))
    return sized


def _num_classes(model: ir.Model, file: Path) -> int:
    shape = {value.name: value.shape for value in model.graph.outputs}.get(LOGITS)
    if shape is None or len(shape) != 2 or not isinstance(shape[1], int):
        raise ModelError(
            f"{str(file)!r} has no output {LOGITS!r} of [batch, num_classes]; export the model again"
        )
    return shape[1]


def compare(
    probe: Probe,
    rules: float,
    outputs: Arrays,
    own: Mapping[str, Array],
    expected: Mapping[str, Array],
    layers: Sequence[Layer],
    rounding: Callable[[], Mapping[str, float]],
) -> Verification:
    """Compare a file's outputs with those expected, and hold all errors against their tolerances.

    Parameters
    ----------
    rules
        The error of the rules in float64.
    outputs
        The file's, in float32.
    own
        What its graph says in float64.
    expected
        The source's logits, and where it has them its activations and gradients.
    rounding
        Asked, where an error is larger than usual, how far rounding moves what is expected, by name.

    Raises
    ------
    VerificationError
        An error is outside its tolerance.
    """
    _check_selection(probe, outputs)
    forward = [LOGITS, *(layer.activations for layer in layers if layer.activations in expected)]
    gradients = [layer.gradients for layer in layers]
    references = {name: expected[name] for name in forward} | {name: own[name] for name in gradients}
    errors = {name: relative_error(outputs[name], reference) for name, reference in references.items()}
    zero = tuple(layer.name for layer in layers if not own[layer.gradients].any())
    autograd = [_median_image(outputs[name], expected[name]) for name in gradients if name in expected]
    measured = Verification(
        inputs=len(outputs[LOGITS]),
        rules=rules,
        logits=errors[LOGITS],
        gradients=max(errors[name] for name in gradients),
        autograd=max(autograd, default=None),
        measured=tuple(layer.name for layer in layers if layer.name not in zero),
        zero=zero,
    )
    allowed = _allowed(errors, rounding, forward, gradients)
    _hold(
        "the gradient rules differ from differences of the logits in float64",
        rules,
        rule_check.TOLERANCE,
        "a gradient rule is wrong, or the network jumps there; another layer may do, and please report the "
        "model",
    )
    for name in forward:
        _hold(
            f"the {name} differ from those expected",
            errors[name],
            allowed[name],
            "the network was traced as another one, or draws at random; see whether PyTorch's own export of "
            "it computes the same",
        )
    for name in gradients:
        _hold(
            "the gradients differ from those of the graph in float64",
            errors[name],
            allowed[name],
            "onnxruntime computes something else here; try another version, and please report the model",
        )
    for error in autograd:
        _hold(
            "the gradients differ from PyTorch's",
            error,
            AUTOGRAD_TOLERANCE,
            "the model's own backward pass may be another; choose a layer after what defines it",
        )
    return measured


def _allowed(
    errors: Mapping[str, float],
    rounding: Callable[[], Mapping[str, float]],
    forward: Sequence[str],
    gradients: Sequence[str],
) -> dict[str, float]:
    """Return the tolerances by name: the usual ones, but where rounding moves a network by more."""
    usual = dict.fromkeys(forward, LOGITS_TOLERANCE) | dict.fromkeys(gradients, GRADIENTS_TOLERANCE)
    if all(error <= usual[name] for name, error in errors.items()):
        return usual
    most = dict.fromkeys(forward, MOST_ROUNDING) | dict.fromkeys(gradients, MOST_ROUNDING_OF_GRADIENTS)
    moved = rounding()
    return {
        name: min(max(tolerance, AS_FAR * moved.get(name, 0.0)), most[name])
        for name, tolerance in usual.items()
    }


def _hold(what: str, error: float, tolerance: float, advice: str) -> None:
    """Raise a VerificationError, unless an error is within its tolerance."""
    if not error <= tolerance:
        raise VerificationError(
            f"{what} by {error:.1e} (relative; at most {tolerance:.0e} is rounding): {advice}"
        )


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


def relative_error(actual: Array, expected: Array) -> float:
    """Return the relative L2 error; not a number where either isn't."""
    difference = np.linalg.norm((actual - expected).astype(np.float64))
    size = np.linalg.norm(expected.astype(np.float64))
    return float(difference if size == 0 else difference / size)


def _median_image(actual: Array, expected: Array) -> float:
    return float(np.median([relative_error(*pair) for pair in zip(actual, expected, strict=True)]))


def _one_digit(number: float) -> float:
    return float(f"{number:.0e}")
