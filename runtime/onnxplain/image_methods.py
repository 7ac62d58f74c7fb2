"""The methods that explain the image itself, or by many predictions: what each needs, and how it is run.

They make one map that is as fine as the network's input, or as the layer for Score-CAM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import MethodError
from onnxplain.manifest import GUIDED_GRADIENTS, IMAGE_GRADIENTS, Layer
from onnxplain.maps import gradcam
from onnxplain.network import Network
from onnxplain.perturbation import Progress, rise, scorecam
from onnxplain.pixel_maps import Gradients, guided_gradcam, integrated_gradients, saliency, smoothgrad

_OPTIONS = {IMAGE_GRADIENTS: "--input-gradient", GUIDED_GRADIENTS: "--guided"}

IMAGE = "image"
"""What stands in the place of a layer's name where a map is of the image itself."""

Maps = list[NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Subject:
    """What is explained: an image as the network takes it, and the classes."""

    network: Network
    tensor: NDArray[np.float32]
    classes: Sequence[int]
    layers: tuple[Layer, ...]
    progress: Progress

    def outputs(self, *names: str) -> dict[str, NDArray[Any]]:
        """Return some of the file's outputs for the image."""
        return self.network.explain([self.tensor], [self.classes], self.layers, names)

    def gradients(self, name: str) -> Gradients:
        """Return the function from images to the gradients of an output."""

        def of(images: NDArray[np.float32]) -> NDArray[Any]:
            classes = [self.classes] * len(images)
            found: NDArray[Any] = self.network.explain(list(images), classes, (), [name])[name]
            return found

        return of


@dataclass(frozen=True)
class ImageMethod:
    """How maps of a subject are made: for each layer, or for the image, [classes, h, w]."""

    maps: Callable[[Subject], Maps]
    output: str | None = None
    """An output that the file must have."""
    has_layers: bool = False
    """There is a map for each layer, not one for the image."""


def _scorecam(subject: Subject) -> Maps:
    activations = subject.outputs(*(layer.activations for layer in subject.layers))
    return [
        scorecam(
            subject.network.predict,
            subject.tensor,
            activations[layer.activations][0],
            subject.classes,
            progress=subject.progress,
        )
        for layer in subject.layers
    ]


def _rise(subject: Subject) -> Maps:
    return [rise(subject.network.scores, subject.tensor, subject.classes, progress=subject.progress)]


def _saliency(subject: Subject) -> Maps:
    return [saliency(subject.outputs(IMAGE_GRADIENTS)[IMAGE_GRADIENTS][0])]


def _guided_backprop(subject: Subject) -> Maps:
    return [saliency(subject.outputs(GUIDED_GRADIENTS)[GUIDED_GRADIENTS][0])]


def _guided_gradcam(subject: Subject) -> Maps:
    names = [name for layer in subject.layers for name in (layer.activations, layer.gradients)]
    outputs = subject.outputs(GUIDED_GRADIENTS, *names)
    guided = outputs[GUIDED_GRADIENTS][0]
    return [
        guided_gradcam(guided, gradcam(outputs[layer.activations][0], outputs[layer.gradients][0]))
        for layer in subject.layers
    ]


def _smoothgrad(subject: Subject) -> Maps:
    return [smoothgrad(subject.gradients(IMAGE_GRADIENTS), subject.tensor, progress=subject.progress)]


def _integrated_gradients(subject: Subject) -> Maps:
    gradients = subject.gradients(IMAGE_GRADIENTS)
    return [integrated_gradients(gradients, subject.tensor, progress=subject.progress)]


IMAGE_METHODS: Mapping[str, ImageMethod] = {
    "scorecam": ImageMethod(_scorecam, has_layers=True),
    "rise": ImageMethod(_rise),
    "saliency": ImageMethod(_saliency, IMAGE_GRADIENTS),
    "smoothgrad": ImageMethod(_smoothgrad, IMAGE_GRADIENTS),
    "integrated_gradients": ImageMethod(_integrated_gradients, IMAGE_GRADIENTS),
    "guided_backprop": ImageMethod(_guided_backprop, GUIDED_GRADIENTS),
    "guided_gradcam": ImageMethod(_guided_gradcam, GUIDED_GRADIENTS, has_layers=True),
}


def check_image_method(method: str, network: Network) -> None:
    """Check that a file has what a method needs.

    Raises
    ------
    MethodError
        It lacks an output, or takes pictures, which can't be changed as a normalised image can.
    """
    output = IMAGE_METHODS[method].output
    if output is not None and not network.has_output(output):
        raise MethodError(
            f"{method} needs the output {output}, which the file lacks; export it with {_OPTIONS[output]}"
        )
    if network.manifest.pixels:
        raise MethodError(
            f"{method} works on what the network takes, and this file prepares pictures itself; "
            "export it without --pixels"
        )
