"""Export: from a source model to a verified explainer file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import onnx_ir as ir

import onnxplain
from onnxplain.errors import LayerError, SourceError, VerificationError
from onnxplain.extras import require
from onnxplain.manifest import Activation, Head, Layer, Manifest, Preprocessing
from onnxplain_export.assemble import LOGITS, TracedModel, assemble, output_names
from onnxplain_export.evidence import (
    Evidence,
    check_size,
    guessed_by_source,
    normalised_inside,
    settle,
    stated_by,
    stated_size,
    warn_of_guess,
)
from onnxplain_export.files import (
    add_manifest,
    check_destination,
    check_not_source,
    moved_into_place,
    save,
    size_of,
)
from onnxplain_export.front_end import FrontEnd
from onnxplain_export.graph import is_quantised, skip_identities
from onnxplain_export.half_precision import halve, largest_numbers
from onnxplain_export.head import is_gap_linear
from onnxplain_export.layers import LayerCandidate, automatic_layer
from onnxplain_export.maps import check_emitted
from onnxplain_export.onnx_file import first_line
from onnxplain_export.pixels import check_takes_pixels
from onnxplain_export.pixels_check import check_pixels, explainer_inside
from onnxplain_export.probe import Probe
from onnxplain_export.progress import expected_seconds, steps_of
from onnxplain_export.reference_graph import Array, Arrays
from onnxplain_export.rule_check import check_rules
from onnxplain_export.running import Values, reference_outputs, run_file
from onnxplain_export.transform import Transform, preprocessing_of
from onnxplain_export.verification import (
    Verification,
    check_half,
    check_heatmap,
    compare,
    differentiated_layers,
    map_outputs,
    relative_error,
    rounding_of_outputs,
    sized_as,
    verify_model,
)

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from onnxplain_export.onnx_model import OnnxModel


# What was traced as a network of one size is further away than this at another.
SAME_NETWORK = 1e-2


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote, and how well it was verified."""

    path: Path
    manifest: Manifest
    verification: Verification
    automatic: bool
    """The layer was picked, not named."""
    any_size: bool
    """The file takes images of any height and width that the network takes."""
    nodes: int
    """Nodes in the file."""
    nodes_added: int
    """Those of them that the source doesn't have: selector, gradients and maps."""
    size: int
    """Bytes of the file, and of the one beside it that holds weights above 2 GB."""
    taken: Mapping[str, str]
    """What the source itself said of labels and preprocessing, and was taken: where each of it stood."""


def export(
    model: nn.Module | ExportedProgram | str | os.PathLike[str] | OnnxModel,
    example_input: torch.Tensor | None,
    path: str | os.PathLike[str],
    *,
    layer: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | Transform | None = None,
    activation: Activation | None = None,
    source_name: str | None = None,
    input_gradient: bool = False,
    guided: bool = False,
    dynamic_size: bool = False,
    heatmap: str | None = None,
    pixels: bool = False,
    fp16: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write an explainer: logits, activations and class gradients in one `.onnx` file.

    The model is traced in evaluation mode and put back as it was; its graph is differentiated from the logits
    to the target layer, and the file is verified before it takes its name.

    Parameters
    ----------
    model
        A classifier that takes one batch of images, float32 [batch, channels, height, width], and returns
        logits [batch, num_classes]: as a tensor, as the first of a tuple, or as ``logits`` of a mapping or
        object; as a module, or as an exported program. Or the path of a finished `.onnx` file, for
        which PyTorch isn't needed; a Softmax or Sigmoid at its end is looked through to the logits.
    example_input
        A batch of one image or more, of the size that the explainer is to take. For an `.onnx` file None: its
        size is the file's own, or that of the preprocessing where the file leaves it open.
    path
        Where the explainer goes; an earlier file there is replaced, unless it is one of the source's.
    layer
        Name of the target module, or of a node or tensor of an `.onnx` file; several of them, or None to pick
        the last one with spatial extent.
    labels
        The classes' names, by index; by default those in the metadata of an `.onnx` file.
    preprocessing
        How pictures become inputs. What it doesn't state, the source may: an `.onnx` file in its metadata.
        The rest is guessed by what the network shows, and a warning says so. The transform of torchvision's
        weights, ``weights.transforms()``, states it all.
    activation
        What makes probabilities of logits: softmax, sigmoid (multi-label and single-logit models) or none. By
        default what an `.onnx` file ends in, sigmoid for a single logit, none (and a warning) for a module
        that ends in a softmax or sigmoid itself, else softmax.
    source_name
        What the manifest calls the source; by default the model's class.
    input_gradient
        Add the output ``image_gradients``, float32 [batch, classes, channels, height, width]: the gradient of
        the image itself.
    guided
        Add the output ``guided_image_gradients``, of the same shape: that of guided backpropagation
        (Springenberg et al. 2015), in whose backward pass a ReLU lets positive gradients through alone. The
        other gradients stay as they are.
    dynamic_size
        The file takes images of any height and width that the network takes, not of the example's alone.
    heatmap
        A method, of `onnxplain_export.maps.METHODS`: add the outputs ``cam``, its maps
        [batch, classes, h, w], and ``heatmap``, float32 [batch, classes, height, width] in [0, 1], for
        programs that don't compute them.
    pixels
        The file takes pictures, ``image`` uint8 [batch, height, width, 3] RGB of any size, and preprocesses
        them itself; ``heatmap`` is then as large as the picture, and lies where the crop lay.
    fp16
        Weights and forward pass in float16, and half the file; inputs, outputs and gradients stay float32. An
        `.onnx` source in float16 becomes such a file anyway.
    progress
        Called with a few words as each step begins, an `onnxplain_export.Step`: a string that says too how
        much is done and how long the rest may take. By default the steps are shown on a line of stderr,
        where that is a terminal or a notebook's and the export takes more than a few seconds.

    Returns
    -------
    ExportReport
        What was written, and the errors that verification measured.

    Raises
    ------
    SourceError
        The model can't be run or traced, or labels or preprocessing don't fit it.
    LayerError
        The layer doesn't exist, has no spatial extent, runs more than once, or doesn't reach the logits.
    UnsupportedOperatorError
        An operator between layer and logits has no gradient rule.
    MethodError
        There is no such method for the heatmap, or it isn't defined for the layer.
    OutputError
        The explainer would replace a file of the source, or its weights another model's.
    VerificationError
        The explainer's logits, gradients or maps are wrong by more than rounding; no file is left.
    """
    destination = Path(path)
    check_destination(destination)
    front = _front_end(model, example_input, preprocessing)
    check_not_source(destination, front.files)
    if activation not in (None, *get_args(Activation)):
        raise SourceError(
            f"there is no activation {activation!r}; choose one of {', '.join(get_args(Activation))}"
        )
    if heatmap is not None:
        check_emitted(heatmap, {})
    statement = _checked_statement(front, preprocessing)
    preprocessing = _settled(front, statement, [])  # what it can't be is said before anything runs
    if pixels:
        check_takes_pixels(preprocessing, any_size=dynamic_size)
    with steps_of(progress) as steps:
        steps.begin("run", "running the model")
        num_classes = front.num_classes
        if activation == "softmax" and num_classes == 1:
            raise SourceError(
                "softmax of a single logit is 1 whatever it is; leave the activation out, and it is sigmoid"
            )
        own_labels = front.own_labels() if labels is None else None
        if own_labels is not None:
            labels = own_labels.names
        elif labels is not None and (isinstance(labels, str) or len(labels) != num_classes):
            raise SourceError(
                f"the labels are {len(labels)}, and the classes of the model {num_classes}; list one a class"
            )
        names = _layer_names(layer, front)
        front.check_layers(names)
        steps.begin("trace", "tracing it to ONNX")
        traced = front.trace(names, dynamic_size=dynamic_size)
        network = list(traced.model.graph)
        # What the source says weighs most; what its graph shows, more than what such networks usually take.
        evidence = [*normalised_inside(traced.image), *guessed_by_source(statement), *front.evidence]
        evidence.sort(key=lambda one: not one.is_stated)
        preprocessing = _settled(front, statement, evidence)
        if fp16 and is_quantised(traced.model.graph):
            raise SourceError("the network is quantised, and has its precision; leave fp16 out")
        is_half = fp16 or traced.is_half
        targets = [*traced.targets.values(), *([traced.image] if input_gradient else [])]
        steps.expect(expected_seconds(network, traced.model.graph, targets, is_half=is_half))
        steps.begin("differentiate", f"differentiating back to {', '.join(names)}")
        layers = _describe(traced, names)
        if heatmap is not None:
            check_emitted(heatmap, {layer.name: layer.head for layer in layers})
        assemble(
            traced,
            input_gradient=input_gradient,
            guided=guided,
            method=heatmap,
            pixels=preprocessing if pixels else None,
        )
        # Without the build's own suffix, as in 2.13.0+cpu.
        producers = {package: version(package).partition("+")[0] for package in front.packages}
        manifest = Manifest(
            input=preprocessing,
            layers=layers,
            labels=None if labels is None else tuple(labels),
            activation=activation or front.activation or _usual_activation(traced.logits, num_classes),
            producer={"onnxplain": onnxplain.__version__, **producers},
            source={
                "kind": front.kind,
                "name": source_name or front.name,
                "sha256": front.digest(),
            },
            heatmap=heatmap,
            pixels=pixels,
        )
        probe = Probe.draw(preprocessing, num_classes, any_size=dynamic_size)
        with moved_into_place(destination, traced.model) as draft:
            # In half precision it is another model that is written.
            file = None if is_half else draft
            if not is_half:
                save(traced.model, draft)
            inside = explainer_inside(traced.model, manifest)
            checked = differentiated_layers(inside, manifest)
            outputs = _run(
                file if inside is traced.model else None,
                inside,
                traced,
                probe,
                checked,
                map_outputs(manifest),
            )
            checked = sized_as(checked, probe, outputs)
            values = Values(inside, probe, outputs)
            steps.begin("rules", "verifying the gradient rules in float64")
            rules = check_rules(values, checked)
            steps.begin("compare", f"verifying the file against {front.reference}")
            expected = front.expected(probe, outputs, checked)
            if dynamic_size:
                _check_other_size(probe, outputs[LOGITS], expected[LOGITS])
            own = reference_outputs(values, checked)

            def rounding() -> dict[str, float]:
                maps = [layer for layer in checked if layer.activations in expected]
                own_rounding = rounding_of_outputs(values, checked, own)
                # The logits are compared with the source's, not with the graph's own.
                return {**own_rounding, LOGITS: 0.0, **front.rounding(probe, expected, maps)}

            verification = compare(probe, rules, outputs, own, expected, checked, rounding)
            check_heatmap(inside, probe, manifest, outputs)
            if pixels:
                check_pixels(file, traced.model, inside, manifest)
            if is_half:
                steps.begin("half", "turning it to float16, and verifying that")
                halve(traced, network, largest_numbers(inside, network, probe))
                save(traced.model, draft)
                verification = replace(
                    _verified_half(draft, manifest, probe, expected[LOGITS]),
                    autograd=verification.autograd,
                )
            manifest = replace(manifest, verification=verification.summary())
            add_manifest(draft, manifest)
            size = size_of(draft)
    warn_of_guess(preprocessing, evidence, stacklevel=2)
    verification.warn_of_zeros(stacklevel=2)
    nodes = sum(1 for _ in traced.model.graph)
    return ExportReport(
        path=destination,
        manifest=manifest,
        verification=verification,
        automatic=layer is None,
        any_size=dynamic_size,
        nodes=nodes,
        nodes_added=nodes - len(network),
        size=size,
        taken=stated_by(evidence, statement) | ({"labels": own_labels.source} if own_labels else {}),
    )


def _run(
    file: Path | None,
    model: ir.Model,
    traced: TracedModel,
    probe: Probe,
    layers: Sequence[Layer],
    others: Sequence[str],
) -> Arrays:
    try:
        return run_file(file, model, probe, layers, others)
    except Exception as error:  # onnxruntime's errors have no common base of their own
        if not traced.has_any_size:
            raise VerificationError(
                f"the explainer doesn't run ({first_line(error)}); another layer may do, and please report "
                "the model"
            ) from error
        raise _one_size_alone("doesn't run", probe) from error


def _verified_half(draft: Path, manifest: Manifest, probe: Probe, expected: Array) -> Verification:
    """Verify a file in half precision by itself, and against the source's logits.

    It is read again: what is checked of it, widened to float32, is another model than the one written.
    """
    model = ir.load(draft)
    verification = verify_model(draft, model, manifest, probe)
    inside = explainer_inside(model, manifest)
    logits = run_file(draft if inside is model else None, inside, probe, [])[LOGITS]
    return replace(verification, logits=check_half(logits, expected))


def _check_other_size(probe: Probe, logits: Array, expected: Array) -> None:
    """Check that what was traced at one size computes the same as the source at another."""
    if not relative_error(logits, expected) <= SAME_NETWORK:
        raise _one_size_alone("was traced as one of fixed size, and computes other logits", probe)


def _one_size_alone(problem: str, probe: Probe) -> SourceError:
    height, width = probe.image.shape[2:]
    return SourceError(
        f"the network {problem} on images of another size, such as {height}x{width}; "
        "leave the dynamic size out"
    )


def list_layers(
    model: nn.Module | ExportedProgram | str | os.PathLike[str] | OnnxModel,
    example_input: torch.Tensor | None = None,
) -> list[LayerCandidate]:
    """Return the layers of a model that can be explained, in the order of their calls.

    Parameters
    ----------
    model, example_input
        As for `export`.

    Raises
    ------
    SourceError
        The model can't be run.
    """
    return _front_end(model, example_input).candidates()


def _front_end(model: object, example_input: object, preprocessing: object = None) -> FrontEnd:
    if not isinstance(model, (str, os.PathLike)) and getattr(model, "kind", None) != "onnx":
        require("export")
        from onnxplain_export.torch_source import TorchModel

        return TorchModel(model, example_input)
    from onnxplain_export.onnx_model import OnnxModel

    if isinstance(model, OnnxModel):
        return model
    return OnnxModel(model, stated_size(preprocessing))  # type: ignore[arg-type]


def _checked_statement(front: FrontEnd, preprocessing: object) -> Preprocessing | None:
    """Check that what a caller states of the preprocessing goes with the network."""
    if preprocessing is None:
        return None
    if isinstance(preprocessing, Transform):
        preprocessing = preprocessing_of(preprocessing)
    if not isinstance(preprocessing, Preprocessing):
        raise SourceError(
            f"the preprocessing is a {type(preprocessing).__name__}; pass a Preprocessing, or the transform "
            "of torchvision's weights"
        )
    check_size(preprocessing, front.channels, front.height, front.width)
    return preprocessing


def _settled(front: FrontEnd, statement: Preprocessing | None, evidence: Sequence[Evidence]) -> Preprocessing:
    return settle(statement, front.channels, front.height, front.width, evidence)


def _usual_activation(logits: ir.Value, num_classes: int) -> Activation:
    last = skip_identities(logits).producer()
    if last is not None and last.op_type in ("Softmax", "Sigmoid"):
        warnings.warn(
            f"the model ends in {last.op_type}, so that probabilities are explained in place of logits, and "
            "maps fade where it is sure; better export a model that returns the logits",
            stacklevel=3,  # the caller of `export`
        )
        return "none"
    return "sigmoid" if num_classes == 1 else "softmax"


def _layer_names(layer: str | Sequence[str] | None, front: FrontEnd) -> list[str]:
    if layer is None:
        return [automatic_layer(front.candidates())]
    names = [layer] if isinstance(layer, str) or not isinstance(layer, Sequence) else list(layer)
    if not names or not all(isinstance(name, str) for name in names):
        raise LayerError("no layer is named; name one or several, such as 'layer4', or leave it out")
    return names


def _describe(traced: TracedModel, names: Sequence[str]) -> tuple[Layer, ...]:
    """Return the manifest's entry of each layer."""
    described = []
    for name, (activations, gradients) in zip(names, output_names(names), strict=True):
        maps = traced.maps[name]
        is_cam = maps.layout == "NCHW" and is_gap_linear(traced.targets[name], traced.logits)
        head: Head | None = "gap_linear" if is_cam else None
        size = (maps.channels, maps.height, maps.width)
        described.append(Layer(name, activations, gradients, *size, tokens=maps.tokens, head=head))
    return tuple(described)
