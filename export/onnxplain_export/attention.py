"""Attention over any number of axes, for PyTorch's exporter, which takes it over four alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

# As a model's code calls it, and as a program of ``torch.export`` does.
_ATTENTION = (scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)


class FourAxes(TorchFunctionMode):
    """Within the block, ``scaled_dot_product_attention`` is called with [batch, heads, places, width]."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch's."""
        call = _over_four_axes if function in _ATTENTION else function
        return call(*args, **(kwargs or {}))


def _over_four_axes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    if query.ndim == 4:
        return scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
    places = query.shape[:-1]
    if attn_mask is not None and attn_mask.ndim > 3:
        attn_mask = _joined(attn_mask.broadcast_to(*places, key.shape[-2]))
    mixed = scaled_dot_product_attention(
        _joined(query), _joined(key), _joined(value), attn_mask, *args, **kwargs
    )
    return mixed.reshape(*places, value.shape[-1])


def _joined(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of four axes: those before the last three become one."""
    return tensor.reshape(-1, *tensor.shape[-3:])
