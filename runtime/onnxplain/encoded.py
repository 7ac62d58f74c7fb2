"""What OpenCV does not say of an encoded picture: is it whole, which way is up, what is transparent."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""A marker other than the restarts, which are part of the entropy-coded data."""
_END_OF_IMAGE = 0xD9
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_EXIF_ORIENTATION = 0x0112


def find_damage(data: bytes) -> str | None:
    """Return what is wrong with a JPEG or PNG file, as the end of a sentence; None where nothing is seen.

    Some versions of OpenCV fill the rest of a cut-off JPEG with grey and say nothing.
    """
    # Nearly all files end where the picture does, and a search through a large one takes long.
    if data.startswith(_JPEG) and not data.endswith(b"\xff\xd9") and not _reaches_end_of_jpeg(data):
        return "cut off: the end of the picture is missing"
    if data.startswith(_PNG):
        try:
            last = [kind for kind, _ in _png_chunks(data)][-1:]
        except ValueError:
            return "damaged: a checksum is wrong"
        if last != [b"IEND"]:
            return "cut off: the end of the picture is missing"
    return None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the height and width of a JPEG in grey or colour, as it lies in the file; else None.

    Which way is up, EXIF says. One of four channels (CMYK) is left out too.
    """
    for marker, segment in _jpeg_segments(data) if data.startswith(_JPEG) else ():
        if marker in _START_OF_FRAME:
            height, width = (
                int.from_bytes(data[segment + 3 : segment + 5]),
                int.from_bytes(data[segment + 5 : segment + 7]),
            )
            return (height, width) if data[segment + 7 : segment + 8] in (b"\1", b"\3") else None
    return None


def transparent_grey(data: bytes) -> int | None:
    """Return the grey level that a grey PNG declares transparent, as OpenCV decodes it; else None."""
    if not data.startswith(_PNG):
        return None
    chunks = dict(_png_chunks(data))
    depth, colour_type = chunks[b"IHDR"][8:10]
    if colour_type != 0 or b"tRNS" not in chunks:
        return None
    level = int.from_bytes(chunks[b"tRNS"][:2])
    return level if depth == 16 else level * 255 // (2**depth - 1)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block states; 1 where it states none."""
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:2] not in (b"II", b"MM"):
        return 1

    def number(start: int, length: int) -> int:
        return int.from_bytes(exif[start : start + length], "little" if exif[:2] == b"II" else "big")

    directory = number(4, 4)
    for entry in range(number(directory, 2)):
        start = directory + 2 + 12 * entry
        if number(start, 2) == _EXIF_ORIENTATION:
            orientation = number(start + 8, 2)
            return orientation if 1 <= orientation <= 8 else 1
    return 1


def _reaches_end_of_jpeg(data: bytes) -> bool:
    return any(marker == _END_OF_IMAGE for marker, _ in _jpeg_segments(data))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker and where its segment begins; segments are skipped whole: a thumbnail has its own."""
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        yield marker[1][0], marker.end()
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and content of each whole chunk up to IEND; ValueError where a checksum is wrong."""
    position = len(_PNG)
    kind = b""
    while kind != b"IEND" and position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        end = position + 8 + length
        if end + 4 > len(data):
            return
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError("wrong checksum")
        kind = data[position + 4 : position + 8]
        yield kind, data[position + 8 : end]
        position = end + 4
