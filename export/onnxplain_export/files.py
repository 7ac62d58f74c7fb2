"""Write a model file: whole, or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from onnxplain.errors import OnnxplainError

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


@contextlib.contextmanager
def moved_into_place(destination: Path) -> Iterator[Path]:
    """Give a path aside for a draft, and move what was written there to its destination.

    Nothing but the destination is left behind, and not even that if the block raises.

    Yields
    ------
    Path
        Where to write the draft; a file `NAME.data` beside it is moved along.

    Raises
    ------
    OnnxplainError
        The destination can't be written to.
    """
    check_destination(destination)
    parent = destination.parent
    try:
        aside = tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=parent)
    except OSError as error:
        raise OnnxplainError(f"can't write to the folder {str(parent)!r} ({error.strerror})") from None
    with aside as folder:
        draft = Path(folder) / destination.name
        yield draft
        data = external_data_of(draft)
        if data.exists():
            data.replace(external_data_of(destination))
            draft.replace(destination)
        else:
            draft.replace(destination)
            # Of an earlier, larger model in this place.
            external_data_of(destination).unlink(missing_ok=True)


def save(model: ir.Model, path: Path) -> None:
    """Write a model; weights above 2 GB go to `NAME.data` beside the file."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    ir.save(
        model, path, external_data=external_data_of(path).name if size > EXTERNAL_DATA_THRESHOLD else None
    )


def size_of(path: Path) -> int:
    """Return the bytes of a model, those of its external data included."""
    data = external_data_of(path)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def external_data_of(path: Path) -> Path:
    """Return where the weights of a model too large for one file are."""
    return path.with_name(f"{path.name}.data")
