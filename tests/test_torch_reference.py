"""PyTorch's autograd as the reference: what it keeps, and what it doesn't."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.torch_model import reference

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([[0, 3], [2, 1]])
MAPS = FeatureMap(5, 6, 6)


class Block(nn.Module):
    """A layer of several steps, and as many steps behind it."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, kernel)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.conv(maps).exp().sin()


@pytest.fixture
def exponentials(monkeypatch: pytest.MonkeyPatch) -> list[StorageWeakRef]:
    """The memory of each exponential that is taken, which its backward pass needs."""
    found: list[StorageWeakRef] = []
    exp = torch.Tensor.exp

    def recorded(tensor: torch.Tensor) -> torch.Tensor:
        result = exp(tensor)
        found.append(StorageWeakRef(result.untyped_storage()))
        return result

    monkeypatch.setattr(torch.Tensor, "exp", recorded)
    return found


def test_what_a_layer_computes_inside_is_not_kept(exponentials: list[StorageWeakRef]) -> None:
    """As the backward pass ends at its output. A layer may be a whole encoder, of gigabytes."""
    alive: list[list[bool]] = []

    class Head(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            alive.append([not memory.expired() for memory in exponentials])
            return maps[:, :4].mean((2, 3))

    model = nn.Sequential(Block(3, 3), Block(5, 1), Head())
    activations = model[0](IMAGES).detach()
    exponentials.clear()
    reference(model, "0", MAPS, IMAGES.clone(), CLASSES, activations)
    assert alive == [[False, True]]


class Summary(nn.Module):
    """A layer that computes more from its maps than it hands on first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.conv(image)
        return maps, maps.exp().mean((2, 3))


class Reader(nn.Module):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        maps, mean = pair
        return (maps.tanh().mean((2, 3)) * mean)[:, :4]


def test_what_a_layer_computes_from_its_maps_is_kept() -> None:
    model = nn.Sequential(Summary(), Reader())
    maps, mean = model[0](IMAGES)
    logits = model[1]((maps, mean))
    rows = [
        torch.autograd.grad(logits.gather(1, CLASSES)[:, k].sum(), maps, retain_graph=True) for k in (0, 1)
    ]
    expected = torch.stack([row[0] for row in rows], dim=1)
    found = reference(model, "0", MAPS, IMAGES.clone(), CLASSES, maps.detach())
    torch.testing.assert_close(torch.from_numpy(found.gradients), expected)
