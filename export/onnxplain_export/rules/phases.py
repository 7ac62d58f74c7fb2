"""The data gradient of a convolution as convolutions itself, with parts of the flipped kernel.

With a stride s, every s-th place of the input is reached by the same taps of the kernel. So there is one
convolution for each such phase, and their results are dovetailed: a sub-pixel convolution (Shi et al. 2016,
*Is the deconvolution layer the same as a convolutional layer?*). Without strides there is one phase.

onnxruntime's Conv is faster than its ConvTranspose, which multiplies matrices and then adds up the windows.
Milliseconds of both in onnxruntime 1.32, 2 threads, batch 1 (lower tenths of 300 runs):

    1x1  2048 to 512, 7x7    0.68  0.48      3x3 / 2  512 to 512, 14x14 to 7x7    1.81  1.38
    1x1  1024 to 256, 14x14  0.62  0.50      3x3 / 2  256 to 256, 28x28 to 14x14  1.33  1.17
    1x1  512 to 2048, 7x7    0.92  0.69      3x3 / 2  128 to 128, 56x56 to 28x28  1.58  1.23
    1x1  960 to 160, 7x7     0.20  0.09      1x1 / 2  1024 to 2048, 14x14 to 7x7  1.48  1.35
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain_export.graph import operand, static_dim
from onnxplain_export.rules.registry import Op, constant_like
from onnxplain_export.rules.weights import swapped
from onnxplain_export.rules.windows import Window

#: Up to how many convolutions one with strides is divided into.
_MOST = 4


@dataclass(frozen=True)
class _Phase:
    """Along one axis, the places of the input that are reached by the same taps of the kernel."""

    taps: tuple[int, ...]
    """In the order of the windows that they are of; none where the windows leave gaps."""
    dilation: int
    """How many windows lie between two taps."""
    start: int
    """Padding before the gradient, and behind it."""
    end: int


def conv_by_phases(
    op: Op,
    node: ir.Node,
    gradient: ir.Value,
    window: Window,
    size: Sequence[int] | None,
) -> ir.Value | None:
    """Return the data gradient of a Conv, [batch, channels, *size]; None where this form doesn't apply.

    Parameters
    ----------
    gradient
        That of the output, its classes folded into its batch.
    size
        The spatial size of the input, where it is known; with strides it must be.
    """
    count = math.prod(window.strides)
    if count > _MOST or (size is None and count > 1):
        return None
    # Without strides, how much longer the input is than the gradient doesn't depend on its size.
    size = size or window.spans
    lengths = [-(-length // stride) for length, stride in zip(size, window.strides, strict=True)]
    along = [
        _phases(window, axis, length - number)
        for axis, (length, number) in enumerate(zip(lengths, window.counts(size), strict=True))
    ]
    if any(min(phase.start, phase.end) < 0 for phases in along for phase in phases):
        return None
    results = [_conv(op, node, gradient, phases) for phases in itertools.product(*along)]
    if count == 1:
        return results[0]
    own_channels = static_dim(operand(node, 1), 1)
    assert own_channels is not None
    channels = own_channels * node.attributes.get_int("group", 1)
    result = _dovetailed(op, results, operand(node, 0), channels, lengths, window.strides)
    whole = [length * stride for length, stride in zip(lengths, window.strides, strict=True)]
    if whole == list(size):
        return result
    axes = list(range(2, 2 + len(size)))
    return op.Slice(result, [0] * len(axes), list(size), axes)


def _phases(window: Window, axis: int, longer: int) -> list[_Phase]:
    """Return the phases along an axis, whose result is to be so much longer than the gradient."""
    stride, dilation, start = window.strides[axis], window.dilations[axis], window.starts[axis]
    phases = []
    for first in range(stride):
        # Place `first + stride * i` of the input lies under a tap of window `i + offset`.
        reach = {tap: first + start - dilation * tap for tap in reversed(range(window.kernel[axis]))}
        offsets = {tap: distance // stride for tap, distance in reach.items() if distance % stride == 0}
        low, high = min(offsets.values(), default=0), max(offsets.values(), default=0)
        gaps = max(len(offsets) - 1, 1)
        phases.append(_Phase(tuple(offsets), max((high - low) // gaps, 1), -low, longer + high))
    return phases


def _conv(op: Op, node: ir.Node, gradient: ir.Value, phases: Sequence[_Phase]) -> ir.Value | None:
    """Return what the windows give to one phase of the places; None where they don't reach it."""
    if not all(phase.taps for phase in phases):
        return None
    groups = node.attributes.get_int("group", 1)
    return op.Conv(
        gradient,
        swapped(op, operand(node, 1), groups, [phase.taps for phase in phases]),
        dilations=[phase.dilation for phase in phases],
        pads=[*(phase.start for phase in phases), *(phase.end for phase in phases)],
        group=groups,
    )


def _dovetailed(
    op: Op,
    results: list[ir.Value | None],
    x: ir.Value,
    channels: int,
    lengths: Sequence[int],
    strides: Sequence[int],
) -> ir.Value:
    """Put the phases' results next to each other, place by place, from the last axis to the first."""
    sizes = list(lengths)
    for axis in reversed(range(len(sizes))):
        stride = strides[axis]
        if stride == 1:
            continue
        groups = [results[first : first + stride] for first in range(0, len(results), stride)]
        before, behind = [-1, channels, *sizes[: axis + 1]], sizes[axis + 1 :]
        sizes[axis] *= stride
        merged = [*before[:-1], *sizes[axis:]]
        # With all that stands behind the axis as one axis, the phases are its parts.
        rows = [[row and _as_row(op, row, before, behind) for row in group] for group in groups]
        results = [_merged(op, group, x, merged) for group in rows]
    (whole,) = results
    assert whole is not None
    return whole


def _as_row(op: Op, result: ir.Value, before: list[int], behind: list[int]) -> ir.Value:
    return result if len(behind) == 1 else op.Reshape(result, [*before, math.prod(behind)])


def _merged(op: Op, rows: list[ir.Value | None], x: ir.Value, shape: list[int]) -> ir.Value | None:
    """Return the rows of each place one after another, zeros for a phase that isn't reached."""
    known = next((row for row in rows if row is not None), None)
    if known is None:
        return None
    zeros = op.Expand(constant_like(op, 0.0, x), op.Shape(known)) if None in rows else None
    return op.Reshape(op.Concat(*(zeros if row is None else row for row in rows), axis=-1), shape)
