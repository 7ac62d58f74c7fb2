"""The selector: from the `class_index` that a caller feeds to the classes that are explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import onnx_ir as ir

from onnxplain_export.rules.registry import Op


@dataclass(frozen=True)
class Classes:
    """The classes of one run, each value int64 or bool of the shape [batch, classes]."""

    explained: ir.Value
    """The class that is explained; -1 where there is no such class."""
    valid: ir.Value
    """Whether there is such a class."""
    index: ir.Value
    """`explained`, with 0 for -1: always safe to gather with."""


def select_classes(op: Op, class_index: ir.Value, logits: ir.Value) -> Classes:
    """Resolve ranks, and mark classes that don't exist.

    Parameters
    ----------
    class_index
        int64 [batch, classes]: c >= 0 is class c, -1 the class with the highest logit, -2 the second highest.
    logits
        float [batch, num_classes].
    """
    num_classes = op.Shape(logits, start=1, end=2)
    rank = op.Sub(-1, class_index)
    is_rank = op.Less(class_index, 0)
    # What isn't a rank has a negative one, and a rank is a negative class: each passes the other test.
    valid = op.And(op.Less(rank, num_classes), op.Less(class_index, num_classes))
    place = op.Where(op.And(is_rank, valid), rank, 0)
    # As many classes are sorted as the lowest rank asks for. The 0 stands for "none is asked for".
    places = op.Concat([0], op.Reshape(place, [-1]), axis=0)
    depth = op.Add(op.ReduceMax(places, keepdims=1), 1)
    sorted_logits = op.TopK(logits, depth, axis=1, largest=1, sorted=1, _outputs=2)
    order = cast("Sequence[ir.Value]", sorted_logits)[1]
    # Joining the two only works where their batches are equal: any other `class_index` fails here, where
    # GatherElements and Expand would take one of batch 1 for all images.
    # It is joined as one column, since Concat lets an empty input of any batch pass.
    table = op.Concat(order, op.ReduceSum(class_index, [1], keepdims=1), axis=1)
    by_rank = op.GatherElements(table, place, axis=1)
    resolved = op.Where(is_rank, by_rank, class_index)
    return Classes(
        explained=op.Where(valid, resolved, -1),
        valid=valid,
        index=op.Where(valid, resolved, 0),
    )
