"""What makes an explanation doubtful, in words for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from onnxplain.cli._explained import Explained

if TYPE_CHECKING:
    from onnxplain.manifest import Preprocessing


def doubt_of_preprocessing(spec: Preprocessing) -> str | None:
    """Return what had to be guessed of it; None where it was stated."""
    if not spec.guessed:
        return None
    return (
        f"A guess: {spec.guess_in_words()} when this file was exported.\n"
        f"A picture is taken as {spec.in_words()}.\n"
        "With labelled pictures, `onnxplain check` tells whether that is right."
    )


def doubt_of_maps(pictures: Iterable[Explained]) -> str | None:
    """Return how many maps are blank, and what that usually means; None where none is."""
    peaks = [found.peak for one in pictures for found in one.findings]
    blank = peaks.count(None)
    if not blank:
        return None
    if blank < len(peaks):
        are = "is" if blank == 1 else "are"
        return f"{blank} of {len(peaks)} maps {are} blank: no place speaks for the class there."
    which = "The map is blank" if blank == 1 else f"All {blank} maps are blank"
    return (
        f"{which}: no place speaks for the class. Where it is so for every picture, gradients are zero:\n"
        "usually the network's head isn't trained; `onnxplain verify` tells."
    )
