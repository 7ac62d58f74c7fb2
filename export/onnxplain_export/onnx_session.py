"""Running models with onnxruntime, on the CPU, to look at what they compute."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from onnxplain_export.files import save
from onnxplain_export.reference_graph import Arrays


def session_of(
    model: bytes | Path, folder: Path | None = None, *, optimised: bool = False
) -> onnxruntime.InferenceSession:
    """Load a model for onnxruntime's CPU provider; `folder` holds the external data of one in memory.

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
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def opened(model: ir.Model) -> Iterator[onnxruntime.InferenceSession]:
    """Load a model for onnxruntime's CPU provider, as it's written."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        save(model, file)
        yield session_of(file)


def run_graph(model: ir.Model, outputs: Sequence[str], feeds: Arrays) -> Arrays:
    """Run a model with onnxruntime, with any of its values as outputs."""
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph)
    copy.graph.outputs[:] = [values[name] for name in outputs]
    with opened(copy) as session:
        return dict(zip(outputs, session.run(list(outputs), feeds), strict=True))
