"""Random weights with which every branch of a network counts."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def redraw(model: nn.Module, example: torch.Tensor, seed: int) -> nn.Module:
    """Redraw every parameter and batch-norm statistic of a model, in place; return it in evaluation mode.

    Freshly initialised networks hide errors: heads of zeros, layer scales of 1e-6, last batch-norm scales of
    zero. Here weights keep the size of their input, scales lie about 1, and offsets about 0. Batch-norm
    statistics are those of the example, and then up to a tenth beside them: with statistics that have nothing
    to do with the activations, these would grow or vanish through the layers, as in no trained network.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    def normal(tensor: torch.Tensor, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)

    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            normal(tensor, 0.1)
        elif tensor.ndim >= 2 and not name.endswith("layer_scale"):
            # He's gain keeps the activations' size through layers of ReLUs.
            normal(tensor, (2.0 / tensor[0].numel()) ** 0.5)
        else:
            uniform(tensor, 0.5, 1.5)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(4, *example.shape[1:], generator=generator))
    for norm in norms:
        norm.running_mean += (
            norm.running_var.sqrt() * (torch.rand(norm.running_mean.shape, generator=generator) - 0.5) / 5
        )
        norm.running_var *= torch.rand(norm.running_var.shape, generator=generator) / 5 + 0.9
    return model.eval()
