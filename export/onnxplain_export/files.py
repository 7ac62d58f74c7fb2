"""Write a model file: whole, or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxplain.errors import OnnxplainError, OutputError
from onnxplain.files import check_apart, folder_aside, is_same_file
from onnxplain.manifest import METADATA_KEY, Manifest
from onnxplain_export.protobuf import pieces

# A protobuf file can't be larger than 2 GiB; above, the weights go to a file of their own.
EXTERNAL_DATA_THRESHOLD = 2**31 - 2**24


def check_destination(destination: Path) -> None:
    """Check that a file can stand at a path, before the work for it begins.

    Raises
    ------
    OnnxplainError
        Its folder doesn't exist, or the path is a folder itself.
    """
    parent = destination.parent
    if not parent.is_dir():
        raise OnnxplainError(f"there is no folder {str(parent)!r} to write {destination.name!r} to; make it")
    if destination.is_dir():
        raise OnnxplainError(f"{str(destination)!r} is a folder; name a file to write to")


def check_not_source(destination: Path, sources: Iterable[Path]) -> None:
    """Check that an explainer replaces none of the files that it is made of.

    Raises
    ------
    OutputError
        It would; or its weights would, which go beside it where they are large.
    """
    sources = list(sources)
    check_apart(destination, sources)
    data = external_data_of(destination)
    if any(is_same_file(data, source) for source in sources):
        raise OutputError(
            f"{str(data)!r} has the source's weights, and would be read as those of {destination.name!r}; "
            "name another file to write to"
        )


@contextlib.contextmanager
def moved_into_place(destination: Path, model: ir.Model) -> Iterator[Path]:
    """Give a path aside for the draft of a model, and move what was written there to its destination.

    Nothing but the destination is left behind, and not even that if the block raises. Of an earlier explainer
    in this place the file of its weights goes too, and no other does.

    Yields
    ------
    Path
        Where to write the draft; a file `NAME.data` beside it is moved along.

    Raises
    ------
    OnnxplainError
        The destination can't be written to.
    OutputError
        The model is so large that its weights go to `NAME.data`, which is another's.
    """
    check_destination(destination)
    parent = destination.parent
    earlier = _earlier_data(destination)
    if _needs_data(model) and earlier is None and external_data_of(destination).exists():
        raise OutputError(
            f"the weights go to {str(external_data_of(destination))!r}, and that is another model's; "
            "name another file to write to"
        )
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(folder_aside(destination))
        except OSError as error:
            raise OnnxplainError(f"can't write to the folder {str(parent)!r} ({error.strerror})") from None
        draft = folder / destination.name
        yield draft
        data = external_data_of(draft)
        if data.exists():
            data.replace(external_data_of(destination))
            draft.replace(destination)
        else:
            draft.replace(destination)
            if earlier is not None:
                earlier.unlink(missing_ok=True)


def save(model: ir.Model, path: Path) -> None:
    """Write a model; weights above 2 GB go to `NAME.data` beside the file."""
    if _needs_data(model):
        ir.save(model, path, external_data=external_data_of(path).name)
        return
    with path.open("wb") as file:
        file.writelines(pieces(model))


def add_manifest(path: Path, manifest: Manifest) -> None:
    """Add a manifest to the file of a model that has no metadata yet; the rest of it stays as it was written.

    Protobuf reads messages that follow each other as one, and metadata are the last field of a model's.
    """
    metadata = onnx.ModelProto()
    onnx.helper.set_model_props(metadata, {METADATA_KEY: manifest.to_json()})
    with path.open("ab") as file:
        file.write(metadata.SerializeToString())


def size_of(path: Path) -> int:
    """Return the bytes of a model, those of its external data included."""
    data = external_data_of(path)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def external_data_of(path: Path) -> Path:
    """Return where the weights of a model too large for one file are."""
    return path.with_name(f"{path.name}.data")


def _needs_data(model: ir.Model) -> bool:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) > EXTERNAL_DATA_THRESHOLD


def _earlier_data(path: Path) -> Path | None:
    """Return the file of weights that an explainer at a path has beside it; None where there is none."""
    data = external_data_of(path)
    if not path.is_file() or not data.is_file():
        return None
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # it is no model: what lies beside it isn't ours
        return None
    is_explainer = any(entry.key == METADATA_KEY for entry in model.metadata_props)
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return data if is_explainer and data.name in locations else None
