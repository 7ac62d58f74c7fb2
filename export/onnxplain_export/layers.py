"""Target layers: the candidates, and the one that is picked when none is named."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxplain.errors import LayerError
from onnxplain_export.feature_map import FeatureMap, Layout


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
    """How many class, distillation and register tokens are dropped."""

    @property
    def tokens(self) -> Mapping[str, Any] | None:
        """How the maps are folded, as the manifest has it; None for maps that need no folding."""
        return FeatureMap(self.channels, self.height, self.width, self.layout, self.prefix).tokens


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
        if call.feature_map is not None and call.reaches_logits and names.count(call.name) == 1
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
        )
        for call, maps in usable
    ]


def _is_one_channel_a_class(call: ModuleCall, maps: FeatureMap, num_classes: int) -> bool:
    """Say whether a call puts out class maps; a headless transformer has as many channels throughout."""
    return maps.channels == num_classes and (maps.layout == "NCHW" or call.kind == "Linear")


def without_unread_grids(
    calls: Sequence[ModuleCall], grid_reaches: Callable[[str, FeatureMap], bool]
) -> list[ModuleCall]:
    """Mark the last layers whose grid the logits don't depend on: of their tokens only the first are read.

    Parameters
    ----------
    calls
        In their order.
    grid_reaches
        Says of a layer's name and maps whether the logits depend on its grid.
    """
    marked = list(calls)
    names = [call.name for call in calls]
    for index in reversed(range(len(marked))):
        call = marked[index]
        maps = call.feature_map
        if maps is None or not call.reaches_logits or names.count(call.name) > 1:
            continue
        if not maps.prefix or grid_reaches(call.name, maps):
            break
        marked[index] = replace(call, reaches_logits=False)
    return marked


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
