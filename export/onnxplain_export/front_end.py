"""What an export asks of a source, whichever framework it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from onnxplain.manifest import Activation, Layer
from onnxplain_export.assemble import TracedModel
from onnxplain_export.evidence import Evidence
from onnxplain_export.layers import LayerCandidate
from onnxplain_export.metadata import Labels
from onnxplain_export.probe import Probe
from onnxplain_export.reference_graph import Arrays


class FrontEnd(Protocol):
    """A classifier that can be traced to an ONNX graph, and asked for what the explainer must reproduce."""

    @property
    def kind(self) -> str:
        """What the manifest calls this kind of source."""

    @property
    def name(self) -> str:
        """What the manifest calls this source, unless the caller has a better name."""

    @property
    def reference(self) -> str:
        """What the file is verified against, for messages."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages whose versions the manifest records."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that it is read from, as far as it knows: none of them may be replaced."""

    @property
    def channels(self) -> int:
        """Channels of the input."""

    @property
    def height(self) -> int:
        """Height of the input."""

    @property
    def width(self) -> int:
        """Width of the input."""

    @property
    def num_classes(self) -> int:
        """How many logits there are; asking may run the model."""

    @property
    def evidence(self) -> Sequence[Evidence]:
        """What the source says of the pictures that it takes, or its kind shows; the weightiest first."""

    def own_labels(self) -> Labels | None:
        """Return the classes' names, where the source has them."""

    @property
    def activation(self) -> Activation | None:
        """What makes probabilities of the logits, where the source says so."""

    def candidates(self) -> list[LayerCandidate]:
        """Return the layers that can be explained, in the order in which they run."""

    def check_layers(self, layers: Sequence[str]) -> None:
        """Check that each named layer exists and can be explained; raise LayerError."""

    def trace(self, layers: Sequence[str], *, dynamic_size: bool) -> TracedModel:
        """Return the classifier as a graph of the design's opset, its batch dynamic, and its size on request.

        Raises SourceError where the classifier takes one size alone.
        """

    def expected(self, probe: Probe, outputs: Arrays, layers: Sequence[Layer]) -> Arrays:
        """Return what the source says of a probe, under the names of the file's outputs.

        Parameters
        ----------
        probe
            The images.
        outputs
            What the file says: its classes and activations are where gradients are taken.
        layers
            The layers at the probe's size, and the image in the role of one where its gradients are checked.
        """

    def rounding(self, probe: Probe, expected: Arrays, layers: Sequence[Layer]) -> dict[str, float]:
        """Return how far rounding moves the expected logits and activations; nothing where that isn't known.

        Parameters
        ----------
        expected
            What the source says of the probe in float32.
        layers
            Those whose activations are expected, at the probe's size.
        """

    def digest(self) -> str:
        """Return the SHA-256 that identifies the weights."""
