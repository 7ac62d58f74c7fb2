"""Which tokens of a module stand for places of the image, and whether the logits depend on them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from onnxplain_export.feature_map import FeatureMap, feature_map_of
from onnxplain_export.layers import ModuleCall
from onnxplain_export.places import Places

# Layers whose gradients are asked for in one backward pass, which goes back to the first of them.
_AT_ONCE = 16


def with_places(
    model: nn.Module,
    run: Callable[[torch.Tensor], object],
    calls: Sequence[ModuleCall],
    example: torch.Tensor,
) -> list[ModuleCall]:
    """Say of calls that put out a row of tokens whether these stand for places, and which of them.

    Parameters
    ----------
    model
        Its modules' outputs are looked at.
    run
        Runs it on images.
    calls
        Each with the grid that its tokens may be, by their number.
    example
        A batch of images, of whose size and device the pictures are.
    """
    sizes = {maps.size for call in calls if (maps := _tokens_of(call)) is not None}
    if not sizes:
        return list(calls)
    image_size = (example.shape[2], example.shape[3])
    places = Places(sizes, image_size)
    found: dict[str, FeatureMap | None] = {}
    last: tuple[torch.Tensor, int, FeatureMap | None] | None = None

    def settled(tensor: torch.Tensor) -> tuple[torch.Tensor, FeatureMap | None]:
        """Return tokens with what has been carried to others put back, and how they are a grid."""
        nonlocal last
        if tensor.ndim != 3 or len(tensor) != len(images) or not tensor.is_floating_point():
            return tensor, None
        if last is not None and tensor is last[0] and tensor._version == last[1]:
            return tensor, last[2]
        maps = feature_map_of(tensor.shape, image_size, sizes)
        if maps is None:
            return tensor, None
        change = tensor[places.of_grid(maps.size)] - tensor[:1]
        # What moves all tokens alike says nothing of any.
        moved = (change - change.mean(dim=1, keepdim=True)).float().norm(dim=-1)
        maps = places.read(maps, moved.cpu().numpy())
        if maps is not None:
            changed = torch.from_numpy(places.changed_tokens(maps)).to(tensor.device)
            tensor = torch.where(changed[..., None], tensor, tensor[:1])
        last = tensor, tensor._version, maps
        return tensor, maps

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> object:
            read: list[FeatureMap | None] = []

            def put_back(tensor: torch.Tensor) -> torch.Tensor:
                tensor, maps = settled(tensor)
                read.append(maps)
                return tensor

            output = _with_tensors(output, put_back)
            found[name] = read[0] if read else None
            return output

        return hook

    images = torch.from_numpy(places.images(example.shape[1])).to(example)
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(look(name)).remove)
        run(images)
    return [
        call
        if _tokens_of(call) is None
        else replace(
            call, feature_map=found[call.name] or call.feature_map, has_places=bool(found[call.name])
        )
        for call in calls
    ]


def grids_reach(
    model: nn.Module,
    run: Callable[[torch.Tensor], torch.Tensor],
    sets: Sequence[Sequence[ModuleCall]],
    image: torch.Tensor,
) -> list[bool]:
    """Say of sets of layers whether the logits depend on any grid of a set, by not-a-number put there.

    It reaches whatever depends on it, also through weights of zero, with which a fresh network's head begins.
    Each set has an image of its own, all in one batch.

    Parameters
    ----------
    run
        Returns the logits of images.
    sets
        Of layers whose tokens are read as grids.
    image
        One, [1, channels, height, width].
    """
    numbers: dict[str, tuple[list[int], FeatureMap]] = {}
    for number, calls in enumerate(sets):
        for call in calls:
            assert call.feature_map is not None
            numbers.setdefault(call.name, ([], call.feature_map))[0].append(number)

    def poison(where: list[int], maps: FeatureMap) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> object:
            is_first = True

            def poisoned(tensor: torch.Tensor) -> torch.Tensor:
                nonlocal is_first
                if not is_first:
                    return tensor
                is_first = False
                tokens = tensor.clone()
                tokens[where, maps.prefix : maps.prefix + maps.height * maps.width] = torch.nan
                return tokens

            return _with_tensors(output, poisoned)

        return hook

    with torch.no_grad(), contextlib.ExitStack() as stack:
        for name, (where, maps) in numbers.items():
            stack.callback(model.get_submodule(name).register_forward_hook(poison(where, maps)).remove)
        # A model that squeezes its output would lose a batch of one.
        logits = run(image.repeat(max(2, len(sets)), 1, 1, 1))
    return logits.isnan().any(dim=1)[: len(sets)].tolist()


def without_numbers(tensor: torch.Tensor) -> torch.Tensor | tuple[torch.Size, torch.dtype, torch.device]:
    """Return what is kept of a tensor for a backward pass that asks what depends on what: not its numbers."""
    return (tensor.shape, tensor.dtype, tensor.device) if tensor.is_floating_point() else tensor


def with_any_numbers(
    kept: torch.Tensor | tuple[torch.Size, torch.dtype, torch.device],
) -> torch.Tensor:
    """Return a tensor like the one that was kept: through its numbers, as through most, a gradient passes."""
    if isinstance(kept, torch.Tensor):
        return kept
    shape, dtype, device = kept
    return torch.full(shape, 0.5, dtype=dtype, device=device)


def last_read(
    calls: Sequence[ModuleCall], edges: Sequence[GradientEdge | None], logits: torch.Tensor
) -> ModuleCall | None:
    """Guess the last call whose grid the logits depend on, by a gradient of not-a-number; None for no guess.

    Parameters
    ----------
    calls
        In their order.
    edges
        The place of each one's output in autograd's graph.
    logits
        Computed under hooks that keep tensors `without_numbers`.
    """
    tokens = [
        (call, maps, edge)
        for call, edge in zip(calls, edges, strict=True)
        if (maps := _tokens_of(call)) is not None and edge is not None and call.has_places
    ]
    for end in range(len(tokens), 0, -_AT_ONCE):
        part = tokens[max(0, end - _AT_ONCE) : end]
        try:
            gradients = torch.autograd.grad(
                logits,
                [edge for _, _, edge in part],
                torch.full_like(logits, torch.nan),
                retain_graph=True,
                allow_unused=True,
            )
        except Exception:  # whatever a network's own backward passes raise, given any numbers
            return None
        for (call, maps, _), gradient in reversed(list(zip(part, gradients, strict=True))):
            count = maps.height * maps.width
            if gradient is not None and gradient[:, maps.prefix : maps.prefix + count].isnan().any():
                return call
    return None


def _tokens_of(call: ModuleCall) -> FeatureMap | None:
    maps = call.feature_map
    return maps if maps is not None and maps.layout == "BNC" and call.reaches_logits else None


def _with_tensors(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a module's output with all of its tensors changed; itself where none is another."""
    if isinstance(output, torch.Tensor):
        return change(output)
    if isinstance(output, Mapping):
        items = {key: _with_tensors(value, change) for key, value in output.items()}
        # Not every type can be made anew.
        if all(items[key] is value for key, value in output.items()):
            return output
        mapping: Any = copy.copy(output)
        for key, value in items.items():
            mapping[key] = value
        return mapping
    if isinstance(output, (tuple, list)):
        values = [_with_tensors(value, change) for value in output]
        if all(value is old for value, old in zip(values, output, strict=True)):
            return output
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    return output
