"""Random weights with which every branch of a network counts."""

from __future__ import annotations

import re

import torch
from torch import nn

# Class and register tokens, and embeddings of places; a relative position's bias is a table of weights.
EMBEDDING = re.compile(r"token|embed|latent|^pos_|_pos$")
OFFSET = re.compile(r"bias|beta")


@torch.no_grad()
def redraw(model: nn.Module, example: torch.Tensor, seed: int) -> nn.Module:
    """Redraw every parameter and batch-norm statistic of a model, in place; return it in evaluation mode.

    Freshly initialised networks hide errors: heads of zeros, layer scales of 1e-6, last batch-norm scales of
    zero, tokens and position biases too small to matter. Here weights keep the size of their input, scales
    lie about 1, offsets about 0, and tokens and embeddings are nearly as large as what they are added to.
    Batch-norm statistics are those of noise of the example's size, and then up to a tenth beside them: with
    statistics that have nothing to do with the activations, these would grow or vanish through the layers, as
    in no trained network. Nor does any amplify rounding as one whose ReLUs have their kink in the middle of
    their inputs, from each layer to the next: batch norms are offset by a half.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    def normal(tensor: torch.Tensor, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)

    for name, tensor in model.named_parameters():
        leaf = name.rpartition(".")[2]
        # One number a channel, whatever axes of length 1 are around it. A convolution to one channel is none.
        is_vector = tensor.ndim < 2 or (leaf != "weight" and tensor.numel() == max(tensor.shape))
        if EMBEDDING.search(leaf):
            normal(tensor, 0.5)
        elif is_vector and OFFSET.search(leaf):
            normal(tensor, 0.1)
        elif is_vector:
            uniform(tensor, 0.5, 1.5)
        else:
            # He's gain keeps the activations' size through layers of ReLUs.
            normal(tensor, (2.0 / tensor[0].numel()) ** 0.5)
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    model.eval()
    if norms:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
            if norm.bias is not None:
                norm.bias.add_(0.5)
        # Where maps shrink to a single place, it takes more images for channels to vary.
        channels, height, width = example.shape[1:]
        images = min(32, max(4, 4 * 224**2 // (height * width)))
        # Auxiliary heads, which only training runs, stay as they are: they may need larger images.
        model(torch.randn(images, channels, height, width, generator=generator))
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        mean += variance.sqrt() * (torch.rand(mean.shape, generator=generator) - 0.5) / 5
        variance *= torch.rand(variance.shape, generator=generator) / 5 + 0.9
    return model.eval()
