"""TIFF files written tag by tag, for the kinds that libraries don't write; and EXIF, which has their form."""

from __future__ import annotations

import struct
import zlib

import numpy as np

BYTE, ASCII, SHORT, LONG, LONG8 = 1, 2, 3, 4, 16
_FORMATS = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", LONG8: "Q"}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
DEFLATE = 8
ORIENTATION = 274


def directory(tags, start, order="<", big=False):
    """Return a directory that begins at `start` of its file, and the values that have no room in it.

    `tags` is a list of (tag, type, values). In place of values may stand how many there are, and the bytes of
    the field that should hold them, or the place where they are.
    """
    word, size = ("Q", 8) if big else ("I", 4)
    after = start + (8 if big else 2) + len(tags) * (4 + 2 * size) + size
    entries, values = b"", b""
    for tag, type_, numbers in tags:
        if isinstance(numbers, tuple):
            count, field = numbers
        else:
            count = len(numbers)
            field = struct.pack(f"{order}{count}{_FORMATS[type_]}", *(int(number) for number in numbers))
        if len(field) > size:
            offset = after + len(values)
            values += field + b"\0" * (len(field) % 2)
            field = struct.pack(order + word, offset)
        entries += struct.pack(f"{order}HH{word}", tag, type_, count) + field.ljust(size, b"\0")
    number = struct.pack(order + ("Q" if big else "H"), len(tags))
    return number + entries + struct.pack(order + word, 0) + values


def exif(*tags, order="<"):
    """Return an EXIF block."""
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return header + directory(tags, 8, order)


def tiff(
    samples,
    photometric,
    *,
    bits=None,
    extra=(),
    planes=1,
    rows=None,
    tile=None,
    compression=1,
    predictor=1,
    fill=1,
    order="<",
    big=False,
    more=(),
    without=(),
):
    """Return a TIFF of samples [H, W, samples]: uint8, 16 or 32 with so many `bits`, or floats.

    `rows` are those of a strip, `tile` is the side of a tile, and `without` names tags to leave out.
    """
    height, width, count = samples.shape
    bits = bits or 8 * samples.dtype.itemsize
    parts = [samples[..., i : i + 1] for i in range(count)] if planes == 2 else [samples]
    blocks = []
    for part in parts:
        for top in range(0, height, tile or rows or height):
            for left in range(0, width, tile or width):
                block = part[top : top + (tile or rows or height), left : left + (tile or width)]
                if tile:
                    below, beside = tile - block.shape[0], tile - block.shape[1]
                    block = np.pad(block, [(0, below), (0, beside), (0, 0)])
                if predictor == 2:
                    block = np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1]))
                packed = _packed(block, bits, order)
                packed = zlib.compress(packed) if compression == DEFLATE else packed
                blocks.append(_REVERSED[np.frombuffer(packed, np.uint8)].tobytes() if fill == 2 else packed)
    offsets = np.cumsum([16 if big else 8, *(len(block) for block in blocks)])
    tags = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [bits] * count),
        (259, SHORT, [compression]),
        (262, SHORT, [photometric]),
        (266, SHORT, [fill]),
        (277, SHORT, [count]),
        (284, SHORT, [planes]),
        (317, SHORT, [predictor]),
        (339, SHORT, [{"u": 1, "i": 2, "f": 3}[samples.dtype.kind]] * count),
        (324 if tile else 273, LONG8 if big else LONG, offsets[:-1]),
        (325 if tile else 279, LONG, [len(block) for block in blocks]),
        *([(322, SHORT, [tile]), (323, SHORT, [tile])] if tile else [(278, LONG, [rows or height])]),
        *([(338, SHORT, list(extra))] if extra else []),
    ]
    tags = sorted([*(tag for tag in tags if tag[0] not in without), *more])
    header = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0) if big else (42,)), offsets[-1])
    first = (b"II" if order == "<" else b"MM") + header + b"".join(blocks)
    return first + directory(tags, int(offsets[-1]), order, big)


def _packed(block, bits, order):
    """Return the samples of a strip or tile, each row from a whole byte on."""
    if bits == 8 * block.dtype.itemsize:
        return block.astype(block.dtype.newbyteorder(order)).tobytes()
    rows = block.reshape(len(block), -1, 1).astype(np.uint32)
    digits = (rows >> np.arange(bits - 1, -1, -1, dtype=np.uint32)) & 1
    return np.packbits(digits.reshape(len(block), -1).astype(np.uint8), axis=1).tobytes()


_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]
"""Each byte with its bits in the other order."""
