"""Running models with onnxruntime, on the CPU, to look at what they compute."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from onnxplain_export.protobuf import without_weights
from onnxplain_export.reference_graph import Arrays


def session_of(
    model: ir.Model | bytes | Path, folder: Path | None = None, *, optimised: bool = False
) -> onnxruntime.InferenceSession:
    """Load a model for onnxruntime's CPU provider; `folder` holds the external data of one in bytes.

    By default it runs as it's written. Optimised, quantised networks round otherwise, in ways that depend on
    what else is asked of it: the results differ by per cents.
    """
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Beside PyTorch's threads, waiting ones of onnxruntime would only take time from them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised, and need not be on stderr too
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder.resolve())
        )
    values: list[onnxruntime.OrtValue] = []
    if isinstance(model, ir.Model):
        proto, weights = without_weights(model)
        values += [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        model = proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # Onnxruntime 1.32 copies them, but nothing in Python promises it: they live as long as the session.
    weakref.finalize(session, values.clear)
    return session


def run_graph(model: ir.Model, outputs: Sequence[str], feeds: Arrays) -> Arrays:
    """Run a model with onnxruntime, with any of its values as outputs."""
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph)
    copy.graph.outputs[:] = [values[name] for name in outputs]
    return dict(zip(outputs, session_of(copy).run(list(outputs), feeds), strict=True))
