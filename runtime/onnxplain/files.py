"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write beside the file, then move it into place.

    Raises
    ------
    OSError
        The folder doesn't exist, or isn't writable.
    """
    path = Path(path)
    aside = path.parent / f".onnxplain-{uuid4().hex}"
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
