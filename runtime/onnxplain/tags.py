"""The first directory of tags of a TIFF file, which is also the form that EXIF has."""

from __future__ import annotations

from typing import Literal

_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}
"""Bytes of the types of whole numbers: BYTE, SHORT, LONG, and BigTIFF's LONG8."""
_MOST = 32
"""Numbers of a tag that are read: none that says how a picture looks has more."""
_ORIENTATION = 0x0112


def read_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """Return the whole numbers under each tag: nothing where the bytes are no such directory.

    An entry that is damaged is left out, and the others count, as in browsers and Pillow; OpenCV reads none
    after it. Of entries with the same tag the first counts.
    """
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], order)

    if data[:2] not in (b"II", b"MM") or number(2, 2) not in (42, 43):
        return {}
    # TIFF, and BigTIFF: the sizes of an offset, and of the number of entries.
    word, counter = (4, 2) if number(2, 2) == 42 else (8, 8)
    first = number(word, word) + counter
    size = 4 + 2 * word
    found: dict[int, tuple[int, ...]] = {}
    for start in range(first, min(first + size * number(first - counter, counter), len(data)), size):
        tag, length = number(start, 2), _SIZES.get(number(start + 2, 2), 0)
        count = number(start + 4, word)
        values = start + 4 + word
        if count * length > word:
            values = number(values, word)
        if length and count and values + count * length <= len(data):
            numbers = [number(values + i * length, length) for i in range(min(count, _MOST))]
            found.setdefault(tag, tuple(numbers))
    return found


def orientation_of(tags: dict[int, tuple[int, ...]]) -> int:
    """Return the orientation, 1 to 8, that they state, as EXIF numbers it; 1 where they state none."""
    orientation = tags.get(_ORIENTATION, (1,))[0]
    return orientation if 1 <= orientation <= 8 else 1
