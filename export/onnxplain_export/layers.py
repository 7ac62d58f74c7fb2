"""Target layers: the candidates, and the one that is picked when none is named."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxplain.errors import LayerError
from onnxplain_export.feature_map import FeatureMap, Layout

NO_PLACES = (
    "the {count} tokens of the layer {name!r} don't stand for places of the image, row by row, as those of "
    "queries don't; choose one that the command lists: onnxplain layers SOURCE"
)


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module in a forward pass."""

    name: str
    kind: str
    shape: tuple[int, ...]
    feature_map: FeatureMap | None
    """How the output is read as feature maps, where it has spatial extent."""
    reaches_logits: bool
    """The logits depend on the maps; of tokens, on those of the grid."""
    same_as_input: bool
    """The output has the input's elements: dropout, a pooling that changes nothing, a reshape, a permute."""
    in_attention: bool = False
    """It is an attention module or a part of one: the features are those of the block around it."""
    has_image_aspect: bool = True
    """The maps' sides are in the image's proportion."""
    is_final_norm: bool = False
    """It is a transformer's last normalisation: the features are those that it follows."""
    has_places: bool = True
    """The maps' positions stand for places of the image; those of queries don't."""


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
    layout: Layout = "NCHW"
    """How the layer's own output holds the maps: as maps, channels last (NHWC), or as tokens (BNC)."""
    prefix: int = 0
    """How many class, distillation and register tokens before the grid's are dropped."""
    suffix: int = 0
    """And how many behind them."""

    @property
    def tokens(self) -> Mapping[str, Any] | None:
        """How the maps are folded, as the manifest has it; None for maps that need no folding."""
        return FeatureMap(
            self.channels, self.height, self.width, self.layout, self.prefix, self.suffix
        ).tokens


def candidates(calls: Sequence[ModuleCall], num_classes: int) -> list[LayerCandidate]:
    """Return the layers that can be explained, in the order of their calls.

    The automatic layer is the last feature map with spatial extent that isn't yet one channel a class. Where
    several modules put it out, one inside the other, the outermost has finished last and is the one. Of
    transformers it is the last layer whose tokens of the grid still reach the logits.
    """
    names = [call.name for call in calls]
    usable = [
        (call, call.feature_map)
        for call in calls
        if call.feature_map is not None
        and call.has_places
        and call.reaches_logits
        and names.count(call.name) == 1
    ]
    pickable = [
        call
        for call, maps in usable
        if not call.same_as_input
        and not _is_one_channel_a_class(call, maps, num_classes)
        and not (call.is_final_norm and maps.layout != "NCHW")
    ]
    pickable = [call for call in pickable if not call.in_attention] or pickable
    # Odd proportions, such as those of spectrograms, count where the network has no others.
    pickable = [call for call in pickable if call.has_image_aspect] or pickable
    automatic = pickable[-1].name if pickable else None
    return [
        LayerCandidate(
            call.name,
            call.kind,
            maps.channels,
            maps.height,
            maps.width,
            automatic=call.name == automatic,
            layout=maps.layout,
            prefix=maps.prefix,
            suffix=maps.suffix,
        )
        for call, maps in usable
    ]


def _is_one_channel_a_class(call: ModuleCall, maps: FeatureMap, num_classes: int) -> bool:
    """Say whether a call puts out class maps; a headless transformer has as many channels throughout."""
    return maps.channels == num_classes and (maps.layout == "NCHW" or call.kind == "Linear")


def without_unread_grids(
    calls: Sequence[ModuleCall],
    reach: Callable[[Sequence[Sequence[ModuleCall]]], Sequence[bool]],
    guess: ModuleCall | None = None,
) -> list[ModuleCall]:
    """Mark the last layers whose grid the logits don't depend on: of their tokens only the others are read.

    Parameters
    ----------
    calls
        In their order.
    reach
        Says of sets of layers, together, whether the logits depend on the grids of any in a set.
    guess
        The last layer whose grid is probably read, which only saves time.
    """
    names = [call.name for call in calls]
    eligible = [
        index
        for index, call in enumerate(calls)
        if call.feature_map is not None
        and call.has_places
        and call.reaches_logits
        and names.count(call.name) == 1
    ]
    all_read = [index for index in eligible if not _has_others(calls[index].feature_map)]
    # What comes before maps that are read as a whole needn't be asked for.
    doubtful = [index for index in eligible if not all_read or index > all_read[-1]]
    # The last one that is read is between the one before `low`, which is, and `high`, from where none is.
    low, high = 0, len(doubtful)
    tried: list[int] = []
    if guess is not None:
        read = next((number for number, index in enumerate(doubtful) if calls[index] is guess), -1)
        tried = [start for start in (read, read + 1) if start >= 0]
    while low < high:
        tried = [start for start in tried or _spread(low, high) if start < high]
        reached = reach([[calls[index] for index in doubtful[start:]] for start in tried])
        for start, is_read in zip(tried, reached, strict=True):
            if is_read:
                low = max(low, start + 1)
            else:
                high = min(high, start)
        tried = []
    marked = list(calls)
    for index in doubtful[low:]:
        marked[index] = replace(calls[index], reaches_logits=False)
    return marked


def _has_others(maps: FeatureMap | None) -> bool:
    return maps is not None and maps.prefix + maps.suffix > 0


def _spread(low: int, high: int) -> list[int]:
    """Return starts to try, between two: closest to the end, where the last that are read mostly are."""
    steps = [2**power for power in range((high - low).bit_length())]
    return sorted(high - step for step in steps if step <= high - low)


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
        "the model has no feature maps or tokens with spatial extent that the logits depend on; "
        "there is nothing to lay a heatmap over"
    )


def closest_names(name: str, names: Iterable[str]) -> str:
    """Return the names most like an unknown one, as a remark in brackets; empty without any."""
    matches = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""
