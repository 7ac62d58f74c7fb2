"""Which tokens of a module stand for places of the image, and whether the logits depend on them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from onnxplain.errors import SourceError
from onnxplain_export.feature_map import Array, FeatureMap, feature_map_of
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
    images = torch.from_numpy(places.images(example.shape[1])).to(example)
    found: dict[str, FeatureMap | None] = {}
    # Of the rows of tokens in a pass, by number: how they are grids, and how far they have been seen to move.
    grids: dict[int, FeatureMap] = {}
    moves: dict[int, tuple[FeatureMap, Array]] = {}
    part = np.arange(len(images))
    count = 0
    last: tuple[torch.Tensor, int, FeatureMap | None] | None = None

    def settled(tensor: torch.Tensor) -> tuple[torch.Tensor, FeatureMap | None]:
        """Return tokens with what has been carried to others put back, and how they are a grid."""
        nonlocal last, count
        if tensor.ndim != 3 or len(tensor) != len(part) or not tensor.is_floating_point():
            return tensor, None
        if last is not None and tensor is last[0] and tensor._version == last[1]:
            return tensor, last[2]
        maps = feature_map_of(tensor.shape, image_size, sizes)
        if maps is None:
            return tensor, None
        number, count = count, count + 1
        if number not in grids:
            change = tensor - tensor[:1]
            # What moves all tokens alike says nothing of any.
            moved = (change - change.mean(dim=1, keepdim=True)).float().norm(dim=-1).cpu().numpy()
            moves.setdefault(number, (maps, np.zeros((len(images), moved.shape[1]), np.float32)))[1][part] = (
                moved
            )
            if len(part) == len(images):
                read(number)
        grid = grids.get(number)
        if grid is not None:
            changed = torch.from_numpy(places.changed_tokens(grid)[part]).to(tensor.device)
            tensor = torch.where(changed[..., None], tensor, tensor[:1])
        last = tensor, tensor._version, grid
        return tensor, grid

    def read(number: int) -> None:
        maps, moved = moves[number]
        grid = places.read(maps, moved[places.of_grid(maps.size)])
        if grid is not None:
            grids[number] = grid

    def look_at(size: int) -> None:
        """Run the images, so many at once; in parts, for as long as what is put back shows further grids."""
        nonlocal part, count, last
        grids.clear()
        while True:
            before = len(grids)
            moves.clear()
            for start in range(1, len(images), size - 1):
                part = np.array([0, *range(start, min(start + size - 1, len(images)))])
                count, last = 0, None
                run(images[torch.from_numpy(part)])
            if size >= len(images):
                return
            for number in set(moves) - set(grids):
                read(number)
            if len(grids) == before:
                return

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> object:
            grids_in_it: list[FeatureMap | None] = []

            def put_back(tensor: torch.Tensor) -> torch.Tensor:
                tensor, maps = settled(tensor)
                grids_in_it.append(maps)
                return tensor

            output = _with_tensors(output, put_back)
            found[name] = grids_in_it[0] if grids_in_it else None
            return output

        return hook

    with torch.no_grad(), contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(look(name)).remove)
        _in_fitting_batches(look_at, len(images))
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
    first = 0
    reached: list[bool] = []
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
                here = [number - first for number in where if first <= number < first + len(tensor)]
                tokens[here, maps.prefix : maps.prefix + maps.height * maps.width] = torch.nan
                return tokens

            return _with_tensors(output, poisoned)

        return hook

    with torch.no_grad(), contextlib.ExitStack() as stack:
        for name, (where, maps) in numbers.items():
            stack.callback(model.get_submodule(name).register_forward_hook(poison(where, maps)).remove)

        def look_at(size: int) -> None:
            nonlocal first
            reached.clear()
            for first in range(0, len(sets), size):
                # A model that squeezes its output would lose a batch of one.
                count = max(2, min(size, len(sets) - first))
                reached.extend(run(image.repeat(count, 1, 1, 1)).isnan().any(dim=1).tolist())

        _in_fitting_batches(look_at, max(2, len(sets)))
    return reached[: len(sets)]


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


def _in_fitting_batches(look_at: Callable[[int], None], size: int) -> None:
    """Run a network on so many images at once, or on fewer, where it doesn't take them; but on two.

    Raises
    ------
    SourceError
        It fails on two, too.
    """
    while True:
        try:
            return look_at(size)
        except Exception as error:  # whatever a network raises
            if size <= 2:
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise SourceError(f"the model fails on a batch of two pictures of noise: {reason}") from error
            size = max(2, size // 2)


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
