"""What OpenCV does not say of an encoded picture.

Is it whole, which way is up, what is transparent, which number is white.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import suppress

from onnxplain.avif import avif_depth, avif_orientation, is_avif
from onnxplain.tags import orientation_of, read_tags

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"

_TEXT_OF_EXIF = b"Raw profile type exif\0"
_MOST_TEXT = 1 << 18
"""Bytes of it, decompressed: twice those of the largest block that JPEG has room for."""

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""A marker other than the restarts, which are part of the entropy-coded data."""
_APP1 = 0xE1
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_JPEG_2000 = b"\xff\x4f\xff\x51"
"""Its first two markers, which stand side by side."""

_NETPBM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d{1,9})")
_NETPBM_TEXT = b"23"


def find_damage(data: bytes) -> str | None:
    """Return what is wrong with a JPEG or PNG file, as the end of a sentence; None where nothing is seen.

    Some versions of OpenCV fill the rest of a cut-off JPEG with grey and say nothing.
    """
    # Nearly all files end where the picture does, and a search through a large one takes long.
    if data.startswith(_JPEG) and not data.endswith(b"\xff\xd9") and not _reaches_end_of_jpeg(data):
        return "cut off: the end of the picture is missing"
    if data.startswith(_PNG):
        last = b""
        for kind, start, end in _png_chunks(data):
            if zlib.crc32(memoryview(data)[start - 4 : end]) != int.from_bytes(data[end : end + 4]):
                return "damaged: a checksum is wrong"
            last = kind
        if last != b"IEND":
            return "cut off: the end of the picture is missing"
    return None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the height and width of a JPEG in grey or colour, as it lies in the file; else None.

    Which way is up, EXIF says. One of four channels (CMYK) is left out too.
    """
    for marker, segment in _jpeg_segments(data):
        if marker in _START_OF_FRAME:
            height, width = (
                int.from_bytes(data[segment + 3 : segment + 5]),
                int.from_bytes(data[segment + 5 : segment + 7]),
            )
            return (height, width) if data[segment + 7 : segment + 8] in (b"\1", b"\3") else None
    return None


def orientation(data: bytes) -> int:
    """Return which way is up in any file but a TIFF: 1 to 8, as EXIF numbers it; 1 where nothing says it."""
    return avif_orientation(data) if is_avif(data) else orientation_of_exif(_exif(data))


def orientation_of_exif(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block states, with or without ``Exif`` before it."""
    return orientation_of(read_tags(exif.removeprefix(b"Exif\0\0")))


def exif_of_text(text: str) -> bytes:
    """Return an EXIF block that is written in hexadecimal digits, below three other lines."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def transparent_grey(data: bytes) -> int | None:
    """Return the grey level that a grey PNG declares transparent, as OpenCV decodes it; else None."""
    header, level = _png_chunk(data, b"IHDR"), _png_chunk(data, b"tRNS")
    if header[9:10] != b"\0" or not level:
        return None
    depth = header[8]
    return int.from_bytes(level[:2]) * (1 if depth == 16 else 255 // (2**depth - 1))


def has_unused_alpha(data: bytes) -> bool:
    """Whether it is a BMP whose fourth channel means nothing, though OpenCV takes it for alpha.

    Its header is the old one, of 40 bytes, in which three masks say where the colours are.
    """
    header, bits, compression = (
        int.from_bytes(data[a:b], "little") for a, b in ((14, 18), (28, 30), (30, 34))
    )
    return data.startswith(b"BM") and (header, bits, compression) == (40, 32, 3)


def whites(data: bytes) -> set[int]:
    """Return the numbers that stand for white in a file's channels, where OpenCV leaves them as they are.

    Samples of 10 or 12 bits it makes uint16, say, and doesn't scale them. Where white is the largest number
    of the type, none is returned.
    """
    if is_avif(data):
        return {2 ** avif_depth(data) - 1}
    start = data.find(_JPEG_2000) if data[4:8] == b"jP  " else 0
    if start >= 0 and data.startswith(_JPEG_2000, start):
        channels = int.from_bytes(data[start + 40 : start + 42])
        return {2 ** ((depth & 0x7F) + 1) - 1 for depth in data[start + 42 : start + 42 + 3 * channels : 3]}
    netpbm = _NETPBM.match(data)
    if netpbm:
        # OpenCV scales what is written as text, up to 8 bits.
        return {max(int(netpbm[4]), 255 if netpbm[1] in _NETPBM_TEXT else 1)}
    return set()


def _exif(data: bytes) -> bytes:
    """Return the EXIF block of a JPEG, PNG or WebP file; empty if there is none.

    Of several the first: that is the one by which Firefox and Pillow turn a picture.
    """
    if data.startswith(_JPEG):
        for marker, segment in _jpeg_segments(data):
            if marker == _APP1 and data.startswith(b"Exif\0", segment + 2):
                return data[segment + 8 : segment + int.from_bytes(data[segment : segment + 2])]
            if marker == _START_OF_SCAN:
                break
        return b""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_chunk(data, b"EXIF")
    return _png_chunk(data, b"eXIf") or _exif_of_text(data)


def _exif_of_text(data: bytes) -> bytes:
    """Return the EXIF block that a PNG keeps as text, as it was done before there was a chunk for it."""
    text = b""
    for kind, start, end in _png_chunks(data):
        if data.startswith(_TEXT_OF_EXIF, start) and kind in (b"tEXt", b"zTXt"):
            text = data[start + len(_TEXT_OF_EXIF) : end]
            if kind == b"zTXt":
                with suppress(zlib.error):
                    text = zlib.decompressobj().decompress(text[1:], _MOST_TEXT)
    return exif_of_text(text.decode("latin-1"))


def _reaches_end_of_jpeg(data: bytes) -> bool:
    return any(marker == _END_OF_IMAGE for marker, _ in _jpeg_segments(data))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker and where its segment begins; segments are skipped whole: a thumbnail has its own."""
    position = 2
    while data.startswith(_JPEG) and (marker := _JPEG_MARKER.search(data, position)):
        yield marker[1][0], marker.end()
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


def _png_chunk(data: bytes, wanted: bytes) -> bytes:
    """Return the content of the first chunk of a kind; empty if there is none, or it is no PNG."""
    for kind, start, end in _png_chunks(data):
        if kind == wanted:
            return data[start:end]
    return b""


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each whole chunk up to IEND, and where its content begins and ends."""
    kind, start = b"", len(_PNG) + 8
    while data.startswith(_PNG) and kind != b"IEND" and start + 4 <= len(data):
        kind = data[start - 4 : start]
        end = start + int.from_bytes(data[start - 8 : start - 4])
        if end + 4 > len(data):
            return
        yield kind, start, end
        start = end + 12


def _webp_chunk(data: bytes, wanted: bytes) -> bytes:
    """Return the content of the first chunk of a kind; empty if there is none."""
    start = 12
    while start + 8 <= len(data):
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        if data[start : start + 4] == wanted:
            return data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2
    return b""
