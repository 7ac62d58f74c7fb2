"""What OpenCV does not say of an AVIF file: which way is up, and how many bits its samples have.

OpenCV decodes by libavif, which leaves it to its caller to turn the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# A picture is turned by `irot`, so many quarters anticlockwise, then mirrored by `imir`: at a horizontal axis
# (0), a vertical one (1), or not at all (None). EXIF's numbers for what comes of it:
_ORIENTATIONS = {
    (0, None): 1,
    (0, 1): 2,
    (2, 0): 2,
    (2, None): 3,
    (0, 0): 4,
    (2, 1): 4,
    (1, 0): 5,
    (3, 1): 5,
    (3, None): 6,
    (3, 0): 7,
    (1, 1): 7,
    (1, None): 8,
}


class _Box(NamedTuple):
    """A box: what kind it is, and where its content lies."""

    kind: bytes
    start: int
    end: int


def is_avif(data: bytes) -> bool:
    """Whether it begins as AVIF files do, those of one picture or of several."""
    return data[4:8] == b"ftyp" and any(
        brand in data[8 : int.from_bytes(data[:4])] for brand in (b"avif", b"avis")
    )


def avif_orientation(data: bytes) -> int:
    """Return the orientation, 1 to 8, as EXIF numbers it.

    In AVIF the properties of the picture say it, `irot` and `imir`. EXIF is to be ignored: where an encoder
    has turned the picture upright, EXIF may still say how the camera was held.
    """
    found = {box.kind: data[box.start] for box in _properties(data) if box.end > box.start}
    axis = found[b"imir"] & 1 if b"imir" in found else None
    return _ORIENTATIONS[found.get(b"irot", 0) & 3, axis]


def avif_depth(data: bytes) -> int:
    """Return the bits of a sample: 8, 10 or 12."""
    # All pictures in a file, which may be parts of one, have the same.
    codec = data.find(b"av1C")
    flags = data[codec + 6] if 0 <= codec < len(data) - 6 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _properties(data: bytes) -> Iterator[_Box]:
    """Return the properties of the picture that the file is of."""
    meta = _inside(data, _Box(b"", 0, len(data)), b"meta", skip=4)
    primary = _inside(data, meta, b"pitm")
    known = _inside(data, meta, b"iprp")
    every = list(_boxes(data, _inside(data, known, b"ipco")))
    wide = data[primary.start : primary.start + 1] > b"\0"
    item = int.from_bytes(data[primary.start + 4 : primary.start + (8 if wide else 6)])
    own = _associations(data, _inside(data, known, b"ipma")).get(item, [])
    return (every[index - 1] for index in own if 1 <= index <= len(every))


def _associations(data: bytes, box: _Box) -> dict[int, list[int]]:
    """Return the numbers, from 1 on, of each item's properties."""
    position = box.start

    def number(length: int) -> int:
        nonlocal position
        position += length
        return int.from_bytes(data[position - length : min(position, box.end)])

    flags = number(4)
    name, index = 4 if flags >> 24 else 2, 2 if flags & 1 else 1
    essential = 1 << (8 * index - 1)
    found: dict[int, list[int]] = {}
    for _ in range(number(4)):
        if position >= box.end:
            break
        item = number(name)
        found[item] = [number(index) & ~essential for _ in range(number(1))]
    return found


def _inside(data: bytes, box: _Box, kind: bytes, skip: int = 0) -> _Box:
    """Return the first box of a kind in another, less some bytes at its start; an empty one if none is."""
    for found in _boxes(data, box):
        if found.kind == kind:
            return found._replace(start=min(found.start + skip, found.end))
    return _Box(kind, len(data), len(data))


def _boxes(data: bytes, outer: _Box) -> Iterator[_Box]:
    start = outer.start
    while start + 8 <= outer.end:
        size, content = int.from_bytes(data[start : start + 4]), start + 8
        if size == 1:
            size, content = int.from_bytes(data[start + 8 : start + 16]), start + 16
        end = outer.end if size == 0 else start + size
        if not content <= end <= outer.end:
            return
        yield _Box(data[start + 4 : start + 8], content, end)
        start = end
