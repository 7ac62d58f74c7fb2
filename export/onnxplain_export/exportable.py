"""PyTorch's functions in forms that its exporter takes, where it doesn't take those that a model calls.

It takes attention over four axes alone, and convolutions of a fixed number of groups. Some networks attend
within windows, over five axes; others give each image a kernel of its own, and make the images of a batch
groups of one convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention, unfold
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

# As a model's code calls them, and as a program of ``torch.export`` does.
_ATTENTION = (scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
_CONVOLUTION = (torch.conv2d, torch.ops.aten.conv2d.default)


class Exportable(TorchFunctionMode):
    """Within the block, models call the forms that PyTorch's exporter takes."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch's."""
        if function in _ATTENTION:
            function = _attention
        elif function in _CONVOLUTION:
            function = _convolution
        return function(*args, **(kwargs or {}))


def _attention(
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
        attn_mask = _of_four_axes(attn_mask.broadcast_to(*places, key.shape[-2]))
    mixed = scaled_dot_product_attention(
        _of_four_axes(query), _of_four_axes(key), _of_four_axes(value), attn_mask, *args, **kwargs
    )
    return mixed.reshape(*places, value.shape[-1])


def _of_four_axes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in which the axes before the last three are one."""
    return tensor.reshape(-1, *tensor.shape[-3:])


def _convolution(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int | torch.SymInt = 1,
) -> torch.Tensor:
    if isinstance(groups, int):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    # Products of matrices take any number of groups.
    channels, kernel = weight.shape[1], tuple(weight.shape[2:])
    columns = unfold(input.reshape(-1, channels, *input.shape[2:]), kernel, dilation, padding, stride)
    products = weight.reshape(groups, -1, channels * math.prod(kernel)) @ columns
    size = [
        (length + 2 * margin - gap * (side - 1) - 1) // step + 1
        for length, side, step, margin, gap in zip(
            input.shape[2:], kernel, _pair(stride), _pair(padding), _pair(dilation), strict=True
        )
    ]
    result = products.reshape(1, -1, *size)
    return result if bias is None else result + bias.reshape(-1, 1, 1)
