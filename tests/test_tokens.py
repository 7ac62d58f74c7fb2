"""Target layers that hold their maps as tokens or channels last: found, folded, and exact."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from onnxplain_export import export, list_layers, verify
from onnxplain_export.feature_map import FeatureMap, feature_map_of, token_grids

EXAMPLE = torch.zeros(1, 3, 24, 32)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Two blocks, some prefix tokens, and a head on the first token or on the mean of the grid's."""

    def __init__(self, prefix: int, pool: str) -> None:
        super().__init__()
        width = 12
        self.patch_embed = nn.Conv2d(3, width, 8, stride=8)
        self.prefix, self.pool = nn.Parameter(torch.randn(1, prefix, width)), pool
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(image.shape[0], -1, -1), tokens], dim=1)
        tokens = self.norm(self.blocks(tokens))
        pooled = tokens[:, 0] if self.pool == "token" else tokens[:, self.prefix.shape[1] :].mean(1)
        return self.head(pooled)


class OwnAttention(nn.Module):
    """Its weights, tokens by tokens, pass a module."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.dropout((x @ x.transpose(1, 2)).softmax(-1)[:, None])
        return weights[:, 0] @ x


class OwnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(12), OwnAttention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attn(self.norm(x))


class PatchByPatch(nn.Module):
    """As TNT: the image is cut into patches by a reshape, and each goes through convolutions by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.inner = nn.Conv2d(3, 4, 3, padding=1)
        self.proj = nn.Linear(4 * 64, 12)
        self.blocks = nn.Sequential(OwnBlock(), OwnBlock())
        self.head = nn.Linear(12, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = nn.functional.unfold(image, 8, stride=8).transpose(1, 2).reshape(-1, 3, 8, 8)
        patches = self.inner(patches).tanh().reshape(image.shape[0], -1, 4 * 64)
        tokens = torch.cat([self.token.expand(image.shape[0], -1, -1), self.proj(patches)], dim=1)
        return self.head(self.blocks(tokens)[:, 0])


class ChannelsLast(nn.Module):
    """As Swin: the maps' channels come last, and a normalisation follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.features = nn.Sequential(nn.Linear(6, 10), nn.GELU())
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.norm(self.features(self.stem(image).permute(0, 2, 3, 1)))
        return self.head(maps.permute(0, 3, 1, 2).mean((2, 3)))


CASES = {
    "class token": (lambda: VisionTransformer(1, "token"), "blocks.1.norm1", FeatureMap(12, 3, 4, "BNC", 1)),
    "registers": (lambda: VisionTransformer(5, "token"), "blocks.1.norm1", FeatureMap(12, 3, 4, "BNC", 5)),
    "mean of the grid": (lambda: VisionTransformer(0, "mean"), "blocks", FeatureMap(12, 3, 4, "BNC", 0)),
    "mean, prefix": (lambda: VisionTransformer(2, "mean"), "blocks", FeatureMap(12, 3, 4, "BNC", 2)),
    "channels last": (ChannelsLast, "features", FeatureMap(10, 6, 8, "NHWC")),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    build, layer, maps = CASES[request.param]
    torch.manual_seed(5)
    return build().eval(), layer, maps


def test_the_automatic_layer(case):
    model, layer, maps = case
    (picked,) = [found for found in list_layers(model, EXAMPLE) if found.automatic]
    assert (picked.name, picked.channels, picked.height, picked.width) == (
        layer,
        maps.channels,
        maps.height,
        maps.width,
    )
    assert (picked.layout, picked.prefix) == (maps.layout, maps.prefix)


def test_a_head_of_zeros_hides_no_layer(case):
    model, layer, _ = case
    nn.init.zeros_(model.head.weight)
    assert [found.name for found in list_layers(model, EXAMPLE) if found.automatic] == [layer]


def test_equals_autograd(case, tmp_path):
    model, layer, maps = case
    path = tmp_path / "model.onnx"
    report = export(model, EXAMPLE, path)
    (entry,) = report.manifest.layers
    assert (entry.name, entry.tokens) == (layer, maps.tokens)
    image = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(11))
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, inputs, output: kept.append(output))
    logits = model(image)
    handle.remove()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {"image": image.numpy(), "class_index": np.array([[0, 4], [3, 1]])}
    activations, gradients = session.run(["activations", "gradients"], feeds)

    def fold(tensor: torch.Tensor) -> torch.Tensor:
        if maps.layout == "NHWC":
            return tensor.permute(0, 3, 1, 2)
        grid = tensor[:, maps.prefix :]
        return grid.transpose(1, 2).reshape(len(tensor), maps.channels, maps.height, maps.width)

    np.testing.assert_allclose(activations, fold(kept[0]).detach(), atol=1e-5)
    for place, column in enumerate([[0, 3], [4, 1]]):
        score = logits[[0, 1], column].sum()
        expected = fold(torch.autograd.grad(score, kept[0], retain_graph=True)[0])
        assert expected.abs().max() > 1e-4
        np.testing.assert_allclose(gradients[:, place], expected, atol=1e-6)
    assert verify(path).rules < 1e-7


def test_maps_of_a_patch_and_of_attention_are_no_grid(tmp_path):
    """On a square image they have its aspect."""
    torch.manual_seed(5)
    report = export(PatchByPatch(), torch.zeros(1, 3, 48, 48), tmp_path / "model.onnx")
    (entry,) = report.manifest.layers
    assert (entry.name, entry.height, entry.width, entry.tokens) == (
        "blocks.1.norm",
        6,
        6,
        {"layout": "BNC", "prefix": 1},
    )


def test_folding_and_back():
    rng = np.random.default_rng(0)
    for maps in (FeatureMap(4, 2, 3, "BNC", 2), FeatureMap(4, 2, 3, "NHWC"), FeatureMap(4, 2, 3)):
        folded = rng.standard_normal((5, 4, 2, 3))
        np.testing.assert_array_equal(maps.fold(maps.unfold(folded)), folded)
    tokens = FeatureMap(4, 2, 3, "BNC", 2).unfold(folded)
    assert tokens.shape == (5, 8, 4)
    assert not tokens[:, :2].any()
    np.testing.assert_array_equal(tokens[:, 2 + 1 * 3 + 2], folded[:, :, 1, 2])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 64, 7, 7), FeatureMap(64, 7, 7)),
        ((2, 7, 7, 64), FeatureMap(64, 7, 7, "NHWC")),
        ((2, 197, 384), FeatureMap(384, 14, 14, "BNC", 1)),
        ((2, 49, 384), FeatureMap(384, 7, 7, "BNC", 0)),
        ((2, 64, 1, 1), None),
        ((2, 150, 384), None),
        ((2, 384), None),
    ],
)
def test_shapes(shape, expected):
    assert feature_map_of(shape, (224, 224), token_grids([(14, 14)], (224, 224))) == expected
