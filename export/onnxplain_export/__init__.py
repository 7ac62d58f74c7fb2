"""Write explainer models: logits, activations and class gradients in one `.onnx` file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxplain_export.cam_head import with_cam_head as with_cam_head
    from onnxplain_export.exporter import ExportReport as ExportReport
    from onnxplain_export.exporter import export as export
    from onnxplain_export.exporter import list_layers as list_layers
    from onnxplain_export.layers import LayerCandidate as LayerCandidate
    from onnxplain_export.onnx_model import OnnxModel as OnnxModel
    from onnxplain_export.progress import Step as Step
    from onnxplain_export.sources import Source as Source
    from onnxplain_export.sources import load_source as load_source
    from onnxplain_export.verification import Verification as Verification
    from onnxplain_export.verification import verify as verify

# Imported when first asked for: torch takes seconds to import, and only these need it. `export` and
# `list_layers` ask for it where the source is a module.
_NEED_TORCH = ("with_cam_head", "Source", "load_source")
_HOMES = {
    "with_cam_head": "cam_head",
    "ExportReport": "exporter",
    "export": "exporter",
    "list_layers": "exporter",
    "LayerCandidate": "layers",
    "OnnxModel": "onnx_model",
    "Source": "sources",
    "Step": "progress",
    "load_source": "sources",
    "Verification": "verification",
    "verify": "verification",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from onnxplain.extras import require

    require("export" if name in _NEED_TORCH else "onnx")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
