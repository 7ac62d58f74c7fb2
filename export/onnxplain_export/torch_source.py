"""The front end for an `nn.Module`, or a program of ``torch.export``, with an example of its input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onnxplain.errors import SourceError
from onnxplain.manifest import Layer
from onnxplain_export.assemble import EXPLAINED, INPUT, LOGITS, TracedModel
from onnxplain_export.evidence import Evidence
from onnxplain_export.exported_program import as_module
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.layers import LayerCandidate, ModuleCall, candidates
from onnxplain_export.module_evidence import evidence_of
from onnxplain_export.probe import Probe
from onnxplain_export.reference_graph import Arrays
from onnxplain_export.torch_model import (
    check_layers,
    record_calls,
    reference,
    reference_image_gradients,
    reference_logits,
    run_in_float64,
    trace,
    weights_digest,
)
from onnxplain_export.verification import relative_error


class TorchModel:
    """A PyTorch classifier.

    Parameters
    ----------
    model, example_input
        As for `export`.

    Raises
    ------
    SourceError
        It isn't a module that can be traced, or the example isn't a batch of images.
    """

    kind = "torch"
    reference = "PyTorch"
    packages = ("torch", "onnx")
    #: A module doesn't say where it was read from.
    files: Sequence[Path] = ()
    #: Whether a module ends in a softmax is read off its graph.
    activation = None

    def __init__(self, model: object, example_input: object) -> None:
        if isinstance(model, torch.export.ExportedProgram):
            model = as_module(model)
        self._model = _checked_model(model)
        self._example = _checked_input(example_input)
        self.name = type(model).__name__
        self.channels, self.height, self.width = self._example.shape[1:]

    @cached_property
    @torch.inference_mode(mode=False)
    def _recorded(self) -> tuple[list[ModuleCall], int]:
        return record_calls(self._model, self._example)

    @property
    def num_classes(self) -> int:
        """How many logits the model returns; the first time it is run for this."""
        return self._recorded[1]

    @property
    def evidence(self) -> Sequence[Evidence]:
        """How the library that the model comes from makes inputs of pictures."""
        return evidence_of(self._model, self.channels, self.height, self.width)

    def own_labels(self) -> None:
        """Return no labels: a module doesn't know them."""

    def candidates(self) -> list[LayerCandidate]:
        """Return the modules that can be explained, in the order of their calls."""
        return candidates(*self._recorded)

    def check_layers(self, layers: Sequence[str]) -> None:
        """Check that each named module is called once and puts out maps that the logits depend on."""
        check_layers(self._model, layers, self._recorded[0])

    @torch.inference_mode(mode=False)
    def trace(self, layers: Sequence[str], *, dynamic_size: bool) -> TracedModel:
        """Return the model as PyTorch's exporter traces it."""
        return trace(self._model, layers, self._example, self._recorded[0], dynamic_size=dynamic_size)

    @torch.inference_mode(mode=False)
    def expected(self, probe: Probe, outputs: Arrays, layers: Sequence[Layer]) -> Arrays:
        """Return PyTorch's logits and activations, and the gradients by autograd."""
        image = torch.from_numpy(probe.image).to(self._example.device)
        classes = torch.from_numpy(outputs[EXPLAINED])
        expected = {LOGITS: reference_logits(self._model, image).numpy()}
        for layer in layers:
            if layer.activations == INPUT:
                expected[layer.gradients] = reference_image_gradients(self._model, image, classes)
                continue
            activations = torch.from_numpy(outputs[layer.activations])
            maps = FeatureMap.of_layer(layer)
            found = reference(self._model, layer.name, maps, image, classes, activations)
            expected[layer.activations] = found.activations
            expected[layer.gradients] = found.gradients
        return expected

    @torch.inference_mode(mode=False)
    def rounding(self, probe: Probe, expected: Arrays, layers: Sequence[Layer]) -> dict[str, float]:
        """Return how far PyTorch's logits and activations are from what it says in float64.

        Nothing where a module insists on float32, or where the model draws at random: it is far from itself.
        """
        image = torch.from_numpy(probe.image)
        names = [layer.name for layer in layers]
        try:
            logits, activations = run_in_float64(self._model, image, names)
        except Exception:  # whatever modules raise that mix their own numbers with the image's
            return {}
        again = reference_logits(self._model, image.to(self._example.device)).numpy()
        if not np.allclose(again, expected[LOGITS], rtol=1e-3, atol=1e-3 * np.abs(again).max()):
            return {}
        exact = {LOGITS: logits}
        for layer, array in zip(layers, activations, strict=True):
            exact[layer.activations] = FeatureMap.of_layer(layer).fold(array)
        return {name: relative_error(expected[name], array) for name, array in exact.items()}

    def digest(self) -> str:
        """Return the SHA-256 of the parameters and buffers, their names included."""
        return weights_digest(self._model)


def _checked_model(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise SourceError(
            f"the model is a {type(model).__name__}; pass a torch.nn.Module, or the path of an .onnx file"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise SourceError(
            "the model is a TorchScript module, which can't be traced; pass the one it was made of"
        )
    if hasattr(model, "_orig_mod"):
        raise SourceError(
            "the model is compiled, which hides its layers; pass the one given to torch.compile"
        )
    return model


def _checked_input(example_input: object) -> torch.Tensor:
    if not isinstance(example_input, torch.Tensor) or example_input.ndim != 4 or len(example_input) == 0:
        raise SourceError("the example input must be a tensor of [batch, channels, height, width]")
    if example_input.dtype != torch.float32:
        raise SourceError(f"the example input is {example_input.dtype}; make it float32")
    return example_input
