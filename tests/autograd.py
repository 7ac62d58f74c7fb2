"""The independent reference: PyTorch's own logits and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def autograd(
    model: nn.Module, layers: Sequence[str], image: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return logits [batch, num_classes] and, by layer, gradients [batch, classes, channels, height, width].

    Of a layer that returns several things the first is meant.
    """
    kept: dict[str, torch.Tensor] = {}
    handles = []
    for name in layers:

        def keep(module: nn.Module, inputs: object, output: Any, name: str = name) -> object:
            if isinstance(output, torch.Tensor):
                kept[name] = output
                return output.clone()  # what comes next may work in place
            kept[name] = next(iter(output.values() if isinstance(output, dict) else output))
            return output

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    # The backward pass ends at the layers: activations before them needn't take memory.
    saved = torch.autograd.graph.saved_tensors_hooks(lambda x: x if kept else None, lambda x: x)
    try:
        with saved:
            logits = model.eval()(image.clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    scores = logits.gather(1, classes).sum(dim=0)
    per_class = [torch.autograd.grad(score, list(kept.values()), retain_graph=True) for score in scores]
    stacked = [torch.stack(gradients, dim=1) for gradients in zip(*per_class, strict=True)]
    return logits.detach(), dict(zip(kept, stacked, strict=True))
