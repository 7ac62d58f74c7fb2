"""Reading an `.onnx` file that may be damaged or hostile, and running it as it is.

Weights are kept out of the protobuf message: onnx's C++ functions copy and serialise what they are given, and
a message ends at 2 GB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, external_data_helper

from onnxplain.errors import SourceError
from onnxplain.manifest import METADATA_KEY
from onnxplain_export.onnx_session import session_of
from onnxplain_export.reference_graph import Array, Arrays

# Larger constants are weights, which no shape is computed from.
LARGEST_KEPT = 1024
_LARGEST_FILE = 2**31 - 1


@dataclass(frozen=True)
class OnnxFile:
    """An `.onnx` file, read."""

    path: Path
    original: onnx.ModelProto
    """As it is; large external data is still outside."""
    light: onnx.ModelProto
    """A copy whose large initializers are inputs in place of constants."""
    weights: Mapping[str, ir.TensorProtocol]
    """Those initializers, by name."""
    data: Sequence[str]
    """The names of the files of external data."""

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """What a caller must feed: old files list their initializers among the inputs too."""
        constants = {tensor.name for tensor in self.original.graph.initializer}
        return [value for value in self.original.graph.input if value.name not in constants]

    @property
    def names(self) -> set[str]:
        """The names of all nodes and tensors of the main graph."""
        nodes = self.original.graph.node
        return {node.name for node in nodes} | {name for node in nodes for name in node.output}

    def run(self, output: str, feeds: Iterable[Arrays], *, optimised: bool = False) -> list[Array]:
        """Run the file as it is, once for each of `feeds`, with any of its tensors as the output."""
        model = onnx.ModelProto()
        model.CopyFrom(self.original)
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name=output))
        session = session_of(model.SerializeToString(), self.path.parent, optimised=optimised)
        return [session.run([output], feed)[0] for feed in feeds]

    def digest(self) -> str:
        """Return the SHA-256 of the file, followed by the files of its external data."""
        digest = hashlib.sha256(self.path.read_bytes())
        for location in self.data:
            with (self.path.parent / location).open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
        return digest.hexdigest()


def read(path: Path) -> OnnxFile:
    """Read a file; its external data must lie in its folder.

    Raises
    ------
    SourceError
        It can't be read, isn't a valid model, or is an explainer already.
    """
    shown = str(path)
    if not path.is_file():
        raise SourceError(f"there is no file {shown!r}")
    if path.stat().st_size > _LARGEST_FILE:
        raise SourceError(f"{shown!r} is larger than 2 GB, and so no ONNX model; use external data")
    try:
        original = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise SourceError(f"{shown!r} is not an ONNX model, or is damaged ({first_line(error)})") from None
    if any(entry.key == METADATA_KEY for entry in original.metadata_props):
        raise SourceError(f"{shown!r} is an explainer already; export the model that it was made of")
    if not original.graph.node:
        raise SourceError(f"{shown!r} is not an ONNX model, or is empty: its graph has no nodes")
    try:
        light, weights = _without_weights(original, path.parent)
        _check(light)
        for tensor in weights.values():
            _check_size(tensor)
        data = _data_files(original)
        for proto in original.graph.initializer:
            # onnxruntime itself infers no shapes from constants outside the file.
            if proto.name not in weights and external_data_helper.uses_external_data(proto):
                external_data_helper.load_external_data_for_tensor(proto, str(path.parent))
    except Exception as error:
        raise SourceError(f"{shown!r} is not a valid ONNX model ({first_line(error)})") from error
    return OnnxFile(path, original, light, weights, data)


def _data_files(model: onnx.ModelProto) -> list[str]:
    return sorted(
        {
            entry.value
            for tensor in model.graph.initializer
            if external_data_helper.uses_external_data(tensor)
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def _check(light: onnx.ModelProto) -> None:
    """Check a model as onnx does; but that outputs have shapes no engine asks for."""
    checked = onnx.ModelProto()
    checked.CopyFrom(light)
    for value in checked.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(checked)


def _without_weights(
    original: onnx.ModelProto, folder: Path
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    light = onnx.ModelProto()
    light.CopyFrom(original)
    graph = light.graph
    inputs = {value.name for value in graph.input}
    kept: list[TensorProto] = []
    weights: dict[str, ir.TensorProtocol] = {}
    for tensor in graph.initializer:
        if int(np.prod(tensor.dims, dtype=object)) <= LARGEST_KEPT:
            kept.append(tensor)
            continue
        weights[tensor.name] = ir.serde.deserialize_tensor(tensor, base_path=folder)
        if tensor.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    # Those among inputs that are constants are constants, whatever an old file says.
    names = {tensor.name for tensor in kept}
    stays = [value for value in graph.input if value.name not in names or light.ir_version < 4]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in stays]
    tensors = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.input[:], graph.initializer[:]
    graph.input.extend(copies)
    graph.initializer.extend(tensors)
    external_data_helper.load_external_data_for_model(light, str(folder))
    return light, weights


def _check_size(tensor: ir.TensorProtocol) -> None:
    """Check that a tensor has as many numbers as it says."""
    if isinstance(tensor, ir.ExternalTensor):
        size = Path(tensor.path).stat().st_size
        if (tensor.offset or 0) + tensor.nbytes > size:
            raise ValueError(f"the data of {tensor.name!r} ends before its last number")
    elif tensor.numpy().size != tensor.size:
        raise ValueError(f"{tensor.name!r} has another size than its shape says")


def batches_of(image: Array, size: int | None) -> Iterator[Array]:
    """Cut a batch into those that a model with a fixed batch takes; the last one repeats its last image."""
    if size is None:
        yield image
        return
    for start in range(0, len(image), size):
        part = image[start : start + size]
        yield np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut where it is long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
