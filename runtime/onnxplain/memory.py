"""How much memory this process has held."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> int | None:
    """Return the most memory that this process has held, in bytes; None where the system doesn't say."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage's figure may be that of the process that started this one
        lines = (line.split() for line in status.read_text().splitlines())
        return next((1024 * int(words[1]) for words in lines if words[:1] == ["VmHWM:"]), None)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
