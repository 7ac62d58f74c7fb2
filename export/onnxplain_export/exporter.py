"""Export: from a PyTorch model to a verified explainer file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import onnxplain
from onnxplain.errors import LayerError, SourceError
from onnxplain.manifest import Activation, Head, Layer, Manifest, Preprocessing
from onnxplain_export.assemble import EXPLAINED, LOGITS, TracedModel, assemble, output_names, set_manifest
from onnxplain_export.files import moved_into_place, save
from onnxplain_export.float64 import Arrays
from onnxplain_export.head import is_gap_linear
from onnxplain_export.layers import LayerCandidate, ModuleCall, automatic_layer, candidates
from onnxplain_export.torch_model import check_layers, record_calls, reference, trace, weights_digest
from onnxplain_export.verification import Probe, Verification, check_rules, compare, run_file


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote, and how well it was verified."""

    path: Path
    manifest: Manifest
    verification: Verification
    automatic: bool
    """The layer was picked, not named."""
    nodes: int
    """Nodes in the file."""
    nodes_added: int
    """Those of them that the source doesn't have: selector and gradients."""
    size: int
    """Bytes of the file."""


def export(
    model: nn.Module,
    example_input: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    layer: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    activation: Activation = "softmax",
    source_name: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> ExportReport:
    """Write an explainer: logits, activations and class gradients in one `.onnx` file.

    The model is traced in evaluation mode and put back as it was; its graph is differentiated from the logits
    to the target layer, and the file is verified before it takes its name.

    Parameters
    ----------
    model
        A classifier that takes one batch of images, float32 [batch, channels, height, width], and returns
        logits [batch, num_classes]: as a tensor, as the first of a tuple, or as ``logits`` of a mapping or
        object.
    example_input
        A batch of one image or more, of the size that the explainer is to take.
    path
        Where the explainer goes.
    layer
        Name of the target module, several of them, or None to pick the last one with spatial extent.
    labels
        The classes' names, by index.
    preprocessing
        How pictures become inputs; by default the usual evaluation transform at the example's size.
    activation
        What makes probabilities of logits: softmax, sigmoid (multi-label and single-logit models) or none.
    source_name
        What the manifest calls the source; by default the model's class.
    progress
        Called with a few words as each step begins.

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
    VerificationError
        The explainer's logits or gradients are wrong by more than rounding; no file is left.
    """
    destination = Path(path)
    preprocessing = _checked_preprocessing(example_input, preprocessing)
    progress("running the model")
    calls, num_classes = record_calls(model, example_input[:1])
    if labels is not None and len(labels) != num_classes:
        raise SourceError(f"there are {len(labels)} labels and {num_classes} classes; give one a class")
    names = _layer_names(layer, calls, num_classes)
    check_layers(model, names, calls)
    progress("tracing it to ONNX")
    traced = trace(model, names, example_input)
    nodes_before = sum(1 for _ in traced.model.graph)
    progress(f"differentiating back to {', '.join(names)}")
    layers = _describe(traced, names, calls)
    assemble(traced)
    # Without the build's own suffix, as in 2.13.0+cpu.
    producers = {package: version(package).partition("+")[0] for package in ("torch", "onnx")}
    manifest = Manifest(
        input=preprocessing,
        layers=layers,
        labels=None if labels is None else tuple(labels),
        activation=activation,
        producer={"onnxplain": onnxplain.__version__, **producers},
        source={
            "kind": "torch",
            "name": source_name or type(model).__name__,
            "sha256": weights_digest(model),
        },
    )
    progress("verifying the gradient rules in float64")
    probe = Probe.draw(preprocessing, num_classes)
    rules = check_rules(traced.model, layers, probe)
    with moved_into_place(destination) as draft:
        save(traced.model, draft)
        progress("verifying the file against PyTorch")
        outputs = run_file(draft, probe, layers)
        verification = compare(rules, outputs, _expected(model, probe, outputs, layers), layers)
        manifest = replace(manifest, verification=verification.summary())
        set_manifest(traced.model, manifest)
        save(traced.model, draft)
    nodes = sum(1 for _ in traced.model.graph)
    return ExportReport(
        path=destination,
        manifest=manifest,
        verification=verification,
        automatic=layer is None,
        nodes=nodes,
        nodes_added=nodes - nodes_before,
        size=destination.stat().st_size,
    )


def list_layers(model: nn.Module, example_input: torch.Tensor) -> list[LayerCandidate]:
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
    _check_input(example_input)
    return candidates(*record_calls(model, example_input[:1]))


def _checked_preprocessing(example_input: torch.Tensor, preprocessing: Preprocessing | None) -> Preprocessing:
    _check_input(example_input)
    channels, height, width = example_input.shape[1:]
    if preprocessing is None:
        return Preprocessing.for_size(channels, height, width)
    size = (preprocessing.channels, preprocessing.height, preprocessing.width)
    if size != (channels, height, width):
        raise SourceError(
            f"the preprocessing gives inputs of {list(size)}, "
            f"and the example has {[channels, height, width]}; make them equal"
        )
    return preprocessing


def _check_input(example_input: torch.Tensor) -> None:
    if not isinstance(example_input, torch.Tensor) or example_input.ndim != 4 or len(example_input) == 0:
        raise SourceError("the example input must be a tensor of [batch, channels, height, width]")
    if example_input.dtype != torch.float32:
        raise SourceError(f"the example input is {example_input.dtype}; make it float32")


def _layer_names(
    layer: str | Sequence[str] | None, calls: Sequence[ModuleCall], num_classes: int
) -> list[str]:
    if layer is None:
        return [automatic_layer(candidates(calls, num_classes))]
    names = [layer] if isinstance(layer, str) else list(layer)
    if not names:
        raise LayerError("no layer is named; name at least one, or leave it to be picked")
    return names


def _describe(traced: TracedModel, names: Sequence[str], calls: Sequence[ModuleCall]) -> tuple[Layer, ...]:
    """Return the manifest's entry of each layer."""
    maps = {call.name: call.feature_map for call in calls}
    described = []
    for name, (activations, gradients) in zip(names, output_names(names), strict=True):
        feature_map = maps[name]
        assert feature_map is not None
        head: Head | None = "gap_linear" if is_gap_linear(traced.targets[name], traced.logits) else None
        described.append(Layer(name, activations, gradients, *feature_map[1:], head=head))
    return tuple(described)


def _expected(model: nn.Module, probe: Probe, outputs: Arrays, layers: Sequence[Layer]) -> Arrays:
    """Return what PyTorch says of a probe, under the names of the file's outputs."""
    classes = torch.from_numpy(outputs[EXPLAINED])
    found = reference(model, [layer.name for layer in layers], torch.from_numpy(probe.image), classes)
    gradients = {layer.gradients: found.gradients[layer.name].numpy() for layer in layers}
    return {LOGITS: found.logits.numpy(), **gradients}
