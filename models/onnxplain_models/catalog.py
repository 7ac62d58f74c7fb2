"""What there is to know about the reference networks without torch: names, labels, files, target layers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType

from onnxplain.errors import ModelError
from onnxplain.manifest import Preprocessing

NETWORKS = ("nin", "vgg_mlp", "vgg_cam")
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PREPROCESSING = Preprocessing(
    channels=3, height=96, width=96, resize=None, crop="none", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)
TARGET_LAYERS = MappingProxyType({"nin": "classes", "vgg_mlp": "features", "vgg_cam": "features"})
"""For each network the layer to explain: `nin`'s class maps, the VGGs' last feature maps; 12 x 12 each."""
METHODS = MappingProxyType({"nin": "cam", "vgg_mlp": "gradcam", "vgg_cam": "cam"})
"""For each network the method of its paper."""


@dataclass(frozen=True)
class Sample:
    """A test scene that ships with the package: its picture, its digit's label, and the digit's box."""

    name: str
    picture: Traversable
    label: str
    box: tuple[int, int, int, int]


def explainer_file(network: str) -> Traversable:
    """Return where a network's exported explainer lies in the package."""
    return _package_file(network, "explainers", ".onnx")


def weights_file(network: str) -> Traversable:
    """Return where a network's trained weights lie in the package."""
    return _package_file(network, "weights", ".safetensors")


def samples() -> tuple[Sample, ...]:
    """Return the sample scenes, in the order of `samples.json`."""
    folder = files(__package__) / "samples"
    records = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return tuple(
        Sample(
            Path(record["file"]).stem,
            folder / record["file"],
            record["label"],
            tuple(record["box"]),
        )
        for record in records
    )


def _package_file(network: str, folder: str, suffix: str) -> Traversable:
    if network not in NETWORKS:
        raise ModelError(f"no reference network is named {network!r}; choose one of {', '.join(NETWORKS)}")
    return files(__package__) / folder / f"{network}{suffix}"
