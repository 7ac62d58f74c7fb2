"""Rows of tokens are grids where they stand for places of the image; those of queries and latents aren't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from onnxplain.cli._text import folding
from onnxplain.errors import LayerError, SourceError
from onnxplain_export import export, list_layers, verify
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.layers import LayerCandidate, ModuleCall, without_unread_grids
from onnxplain_export.places import Places

WIDTH = 12
EXAMPLE = torch.zeros(1, 3, 32, 32)


def backbone() -> nn.Sequential:
    """Return two convolutions that make maps of 8x8 of an image of 32x32."""
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1),
        nn.ReLU(),
    )


class Queries(nn.Module):
    """As DETR: a decoder's queries attend to the maps of a backbone."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.backbone = backbone()
        self.queries = nn.Parameter(torch.randn(1, count, WIDTH))
        layer = nn.TransformerDecoderLayer(WIDTH, 3, 24, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        places = self.backbone(image).flatten(2).transpose(1, 2)
        logits: torch.Tensor = self.head(
            self.decoder(self.queries.expand(image.shape[0], -1, -1), places).mean(1)
        )
        return logits


class Latents(nn.Module):
    """As Perceiver: some latents attend to the pixels, and then to each other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 1)
        self.places = nn.Parameter(torch.randn(1, 32 * 32, WIDTH))
        self.latents = nn.Parameter(torch.randn(1, count, WIDTH))
        self.cross = nn.MultiheadAttention(WIDTH, 3, batch_first=True)
        self.block = nn.TransformerEncoderLayer(WIDTH, 3, 24, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = self.embed(image).flatten(2).transpose(1, 2) + self.places
        latents = self.latents.expand(image.shape[0], -1, -1)
        latents = latents + self.cross(latents, pixels, pixels, need_weights=False)[0]
        logits: torch.Tensor = self.head(self.norm(self.block(latents)).mean(1))
        return logits


class Tokens(nn.Module):
    """Patches and other tokens, in some order, and attention among them."""

    def __init__(self, prefix: int, suffix: int, order: str, *, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.first = nn.Parameter(torch.randn(1, prefix, WIDTH))
        self.last = nn.Parameter(torch.randn(1, suffix, WIDTH))
        self.embedding = nn.Parameter(torch.randn(1, 64, WIDTH))
        index = torch.arange(64)
        orders = {
            "rows": index,
            "columns": index.view(8, 8).T.flatten(),
            "backwards": index.flip(0),
            "at random": torch.randperm(64, generator=torch.Generator().manual_seed(3)),
        }
        self.register_buffer("order", orders[order])
        layers = [
            nn.TransformerEncoderLayer(WIDTH, 3, 24, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = (self.patches(image).flatten(2).transpose(1, 2) + self.embedding)[:, self.order]
        ends = (end.expand(image.shape[0], -1, -1) for end in (self.first, self.last))
        first, last = ends
        logits: torch.Tensor = self.head(self.blocks(torch.cat([first, tokens, last], dim=1)).mean(1))
        return logits


def written(model: nn.Module, folder: Path) -> Path:
    """Write a network as an .onnx file."""
    path = folder / "source.onnx"
    images = (EXAMPLE.repeat(2, 1, 1, 1),)
    torch.onnx.export(model, images, path, dynamo=True, verbose=False, dynamic_shapes=({0: "batch"},))
    return path


def listed(model: nn.Module, kind: str, folder: Path) -> list[LayerCandidate]:
    """Return the layers of a network, or of the file that it is written to."""
    if kind == "module":
        return list_layers(model, EXAMPLE)
    return list_layers(written(model, folder))


def automatic(layers: list[LayerCandidate]) -> LayerCandidate:
    (picked,) = [layer for layer in layers if layer.automatic]
    return picked


both = pytest.mark.parametrize("kind", ["module", "file"])


@pytest.mark.parametrize(
    ("count", "kind"),
    [*((count, "module") for count in (10, 16, 20, 27, 64, 70)), (20, "file"), (64, "file")],
)
def test_queries_are_no_grid(count: int, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(count)
    layers = listed(Queries(count).eval(), kind, tmp_path)
    picked = automatic(layers)
    assert (picked.layout, picked.channels, picked.height, picked.width) == ("NCHW", WIDTH, 8, 8)
    # The same maps as tokens may be listed, but none of the queries.
    tokens = [layer for layer in layers if layer.layout == "BNC"]
    assert {(layer.height, layer.width, layer.prefix, layer.suffix) for layer in tokens} <= {(8, 8, 0, 0)}
    if kind == "module":
        assert picked.name == "backbone"
        assert not [layer.name for layer in layers if layer.name.startswith("decoder")]


@both
def test_latents_are_no_grid(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = listed(Latents(8).eval(), kind, tmp_path)
    picked = automatic(layers)
    assert (picked.height, picked.width) == (32, 32)
    assert {(layer.height, layer.width) for layer in layers if layer.layout == "BNC"} <= {(32, 32)}


@both
@pytest.mark.parametrize("order", ["columns", "backwards", "at random"])
def test_another_order_is_no_grid(order: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = listed(Tokens(1, 0, order).eval(), kind, tmp_path)
    assert {layer.prefix for layer in layers} == {0}
    assert automatic(layers).layout == ("NCHW" if kind == "module" else "BNC")


@both
@pytest.mark.parametrize(("prefix", "suffix"), [(0, 0), (1, 0), (5, 0), (0, 1), (2, 3)])
def test_other_tokens_stand_before_and_behind(prefix: int, suffix: int, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    picked = automatic(listed(Tokens(prefix, suffix, "rows").eval(), kind, tmp_path))
    assert (picked.layout, picked.height, picked.width) == ("BNC", 8, 8)
    assert (picked.prefix, picked.suffix) == (prefix, suffix)
    if kind == "module":
        assert picked.name == "blocks"


@pytest.mark.parametrize("seed", range(3))
def test_deep_attention_blurs_no_grid(seed: int) -> None:
    """All tokens move alike behind so many blocks, if what attention carries isn't put back."""
    torch.manual_seed(seed)
    model = Tokens(1, 0, "rows", depth=24).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn" in name and parameter.ndim == 2:
                parameter.mul_(3)
    assert automatic(list_layers(model, EXAMPLE)).name == "blocks"


class Residual(nn.Module):
    """Maps of half the size, and a convolution that adds to them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, WIDTH, 3, stride=2, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.down(maps)
        added: torch.Tensor = maps + self.conv(self.norm(maps).relu())
        return added


class Hybrid(nn.Module):
    """Attention among the last maps of convolutions whose receptive field is wider than the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*[Residual(WIDTH if number else 3) for number in range(5)])
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        blocks = [nn.TransformerEncoderLayer(WIDTH, 3, 24, dropout=0.0, batch_first=True) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(image.shape[0], -1, -1), tokens], dim=1)
        logits: torch.Tensor = self.head(self.blocks(tokens)[:, 0])
        return logits


# Not all of 2x2 places are seen: with the seeds 1 and 3 these convolutions blur them too much.
@pytest.mark.parametrize(("cells", "seed"), [(2, 0), (2, 2), (3, 0), (3, 1), (3, 2), (3, 3)])
def test_grids_of_few_places_are_seen_behind_a_wide_receptive_field(cells: int, seed: int) -> None:
    torch.manual_seed(seed)
    layers = list_layers(Hybrid().eval(), torch.zeros(1, 3, 32 * cells, 32 * cells))
    tokens = {(layer.height, layer.width, layer.prefix) for layer in layers if layer.layout == "BNC"}
    assert tokens == {(cells, cells, 1)}


@pytest.mark.parametrize("network", [Queries, Latents])
@pytest.mark.parametrize("count", [8, 10])
def test_few_queries_are_no_grid_by_chance(count: int, network: type[Queries | Latents]) -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        sizes = {
            layer.height for layer in list_layers(network(count).eval(), EXAMPLE) if layer.layout == "BNC"
        }
        assert not sizes & {2, 3}


def test_tokens_behind_the_grid_are_dropped(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = Tokens(2, 3, "rows").eval()
    path = tmp_path / "model.onnx"
    report = export(model, EXAMPLE, path)
    (entry,) = report.manifest.layers
    assert entry.tokens == {"layout": "BNC", "prefix": 2, "suffix": 3}
    assert FeatureMap.of_layer(entry) == FeatureMap(WIDTH, 8, 8, "BNC", 2, 3)
    assert verify(path).rules < 1e-7
    assert folding(entry.tokens) == ", folded from tokens, the first 2 and the last 3 dropped"


@both
def test_a_named_layer_of_queries_is_refused(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Queries(20).eval()
    path = tmp_path / "model.onnx"
    words = "20 tokens .* don't stand for places"
    if kind == "module":
        with pytest.raises(LayerError, match=words):
            export(model, EXAMPLE, path, layer="decoder")
        return
    source = written(model, tmp_path)
    (name,) = [node.name for node in last_normalisations(source)]
    with pytest.raises(LayerError, match=words):
        export(source, None, path, layer=name)


def last_normalisations(path: Path) -> list[onnx.NodeProto]:
    graph = onnx.load(path).graph
    return [node for node in graph.node if node.op_type == "LayerNormalization"][-1:]


@pytest.mark.parametrize(
    ("size", "most"), [((2, 2), 0), ((3, 3), 0), ((3, 4), 0), ((4, 4), 0), ((7, 7), 0), ((14, 14), 0)]
)
def test_tokens_that_move_at_random_seldom_pass(size: tuple[int, int], most: int) -> None:
    rng = np.random.default_rng(0)
    places = Places([size], (48, 64))
    images = len(places.images(1)) - 1
    maps = FeatureMap(8, *size, "BNC", 4)
    passed = sum(
        places.read(maps, rng.exponential(size=(images, size[0] * size[1] + 4))) is not None
        for _ in range(1000)
    )
    assert passed <= most


@pytest.mark.parametrize("guess", [None, *range(12)])
@pytest.mark.parametrize("read", range(2, 12))
def test_the_last_grid_that_is_read(read: int, guess: int | None) -> None:
    """A guess, right or wrong, saves passes and decides nothing; the right one leaves one of two images."""
    maps = FeatureMap(8, 3, 4, "BNC", 1)
    first = ModuleCall("maps", "Conv2d", (2, 8, 3, 4), FeatureMap(8, 3, 4), True, False)
    calls = [first, *(ModuleCall(f"{n}", "Block", (2, 13, 8), maps, True, False) for n in range(1, 12))]
    passes = []

    def reach(sets: Sequence[Sequence[ModuleCall]]) -> list[bool]:
        passes.append(len(sets))
        return [any(call.name == str(read) for call in calls) for calls in sets]

    marked = without_unread_grids(calls, reach, None if guess is None else calls[guess])
    assert [call.reaches_logits for call in marked] == [number <= read for number in range(12)]
    if guess == read:
        assert passes == [min(2, 12 - read)]


class Pair(tuple[torch.Tensor, torch.Tensor]):
    """A tuple that is made of two."""

    def __new__(cls, one: torch.Tensor, other: torch.Tensor) -> Pair:
        return super().__new__(cls, (one, other))


class Returning(nn.Module):
    """Return what a function makes of the input."""

    def __init__(self, made: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.made = made

    def forward(self, image: torch.Tensor) -> Any:
        return self.made(image)


@pytest.mark.parametrize(
    "made",
    [lambda image: MappingProxyType({0: image}), lambda image: Pair(image, image)],
    ids=["proxy", "pair"],
)
def test_what_is_no_row_of_tokens_passes_as_it_is(made: Callable[[torch.Tensor], Any]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.returning = Tokens(1, 0, "rows"), Returning(made)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.tokens(self.returning(image)[0])
            return logits

    torch.manual_seed(0)
    assert automatic(list_layers(Model().eval(), EXAMPLE)).name == "tokens.blocks"


class FewAtOnce(nn.Module):
    """A network that takes no more than some images."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most = model, most

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[0] <= self.most
        logits: torch.Tensor = self.model(image)
        return logits


@pytest.mark.parametrize("most", [2, 4, 7])
@pytest.mark.parametrize("network", ["tokens", "deep", "hybrid", "queries"])
def test_a_network_that_limits_its_batch_has_the_same_layers(network: str, most: int) -> None:
    torch.manual_seed(0)
    models: dict[str, Callable[[], nn.Module]] = {
        "tokens": lambda: Tokens(2, 1, "rows"),
        "deep": lambda: Tokens(1, 0, "rows", depth=8),
        "hybrid": Hybrid,
        "queries": lambda: Queries(8),
    }
    model = models[network]()
    example = torch.zeros(1, 3, 64, 64) if network == "hybrid" else EXAMPLE
    names = [replace(layer, name=f"model.{layer.name}") for layer in list_layers(model.eval(), example)]
    limited = [layer for layer in list_layers(FewAtOnce(model, most), example) if layer.name != "model"]
    assert limited == names


def test_a_program_that_limits_its_batch_is_listed() -> None:
    torch.manual_seed(0)
    dims = ({0: torch.export.Dim("batch", max=4)},)
    program = torch.export.export(
        Tokens(1, 0, "rows").eval(), (EXAMPLE.repeat(2, 1, 1, 1),), dynamic_shapes=dims
    )
    assert automatic(list_layers(program, EXAMPLE)).layout == "BNC"


def test_a_network_that_fails_on_other_images_says_so() -> None:
    class Once(FewAtOnce):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.most -= 1
            assert self.most >= 0, "no more images"
            logits: torch.Tensor = self.model(image)
            return logits

    with pytest.raises(SourceError, match=r"^the model fails on .*: no more images$"):
        list_layers(Once(Tokens(1, 0, "rows").eval(), 1), EXAMPLE)
