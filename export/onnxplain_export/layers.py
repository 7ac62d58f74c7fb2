"""Target layers: the candidates, and the one that is picked when none is named."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onnxplain.errors import LayerError


class Tensor4(NamedTuple):
    """Shape of a batch of feature maps."""

    batch: int
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module in a forward pass."""

    name: str
    kind: str
    shape: tuple[int, ...]
    feature_map: Tensor4 | None
    """The shape of the output where it is a feature map with spatial extent."""
    reaches_logits: bool
    same_as_input: bool
    """The output has the input's elements in order: dropout, a pooling that changes nothing, a reshape."""


@dataclass(frozen=True)
class LayerCandidate:
    """A layer that can be explained."""

    name: str
    kind: str
    channels: int
    height: int
    width: int
    automatic: bool
    """It is the one that is picked when none is named."""


def candidates(calls: Sequence[ModuleCall], num_classes: int) -> list[LayerCandidate]:
    """Return the layers that can be explained, in the order of their calls.

    The automatic layer is the last feature map with spatial extent that isn't yet one channel a class. Where
    several modules put it out, one inside the other, the outermost has finished last and is the one.
    """
    names = [call.name for call in calls]
    usable = [
        call
        for call in calls
        if call.feature_map is not None and call.reaches_logits and names.count(call.name) == 1
    ]
    automatic = next(
        (
            call.name
            for call in reversed(usable)
            if not call.same_as_input
            and call.feature_map is not None
            and call.feature_map.channels != num_classes
        ),
        None,
    )
    return [
        LayerCandidate(call.name, call.kind, *call.feature_map[1:], automatic=call.name == automatic)
        for call in usable
        if call.feature_map is not None
    ]


def automatic_layer(found: Sequence[LayerCandidate]) -> str:
    """Return the name of the automatic layer.

    Raises
    ------
    LayerError
        The model has no feature maps with spatial extent.
    """
    for candidate in found:
        if candidate.automatic:
            return candidate.name
    raise LayerError(
        "the model has no layer of [batch, channels, height, width] that the logits depend on; "
        "there is nothing to lay a heatmap over"
    )


def closest_names(name: str, names: Iterable[str]) -> str:
    """Return the names most like an unknown one, as a remark in brackets; empty without any."""
    matches = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""
