"""Explain an image classifier with onnxruntime: CAM and Grad-CAM from one explainer `.onnx` file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Names are imported when first asked for: `onnxplain --help` needs neither onnxruntime nor OpenCV.
_HOMES = {
    "Box": "onnxplain.boxes",
    "BoxesError": "onnxplain.errors",
    "Explainer": "onnxplain.explainer",
    "Explanation": "onnxplain.explanation",
    "ImageError": "onnxplain.errors",
    "Layer": "onnxplain.manifest",
    "LayerError": "onnxplain.errors",
    "Manifest": "onnxplain.manifest",
    "MethodError": "onnxplain.errors",
    "MissingDependencyError": "onnxplain.errors",
    "ModelError": "onnxplain.errors",
    "OnnxplainError": "onnxplain.errors",
    "OutputError": "onnxplain.errors",
    "Preprocessing": "onnxplain.manifest",
    "ProviderError": "onnxplain.errors",
    "SourceError": "onnxplain.errors",
    "TargetError": "onnxplain.errors",
    "UnsupportedOperatorError": "onnxplain.errors",
    "VerificationError": "onnxplain.errors",
    "cam": "onnxplain.maps",
    "gradcam": "onnxplain.maps",
}

if TYPE_CHECKING:
    from onnxplain.boxes import Box
    from onnxplain.errors import (
        BoxesError,
        ImageError,
        LayerError,
        MethodError,
        MissingDependencyError,
        ModelError,
        OnnxplainError,
        OutputError,
        ProviderError,
        SourceError,
        TargetError,
        UnsupportedOperatorError,
        VerificationError,
    )
    from onnxplain.explainer import Explainer
    from onnxplain.explanation import Explanation
    from onnxplain.manifest import Layer, Manifest, Preprocessing
    from onnxplain.maps import cam, gradcam

__all__ = [
    "Box",
    "BoxesError",
    "Explainer",
    "Explanation",
    "ImageError",
    "Layer",
    "LayerError",
    "Manifest",
    "MethodError",
    "MissingDependencyError",
    "ModelError",
    "OnnxplainError",
    "OutputError",
    "Preprocessing",
    "ProviderError",
    "SourceError",
    "TargetError",
    "UnsupportedOperatorError",
    "VerificationError",
    "cam",
    "gradcam",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
