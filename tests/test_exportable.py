"""Functions that PyTorch's exporter doesn't take as models call them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from autograd import autograd
from onnxplain_export import export, torch_model
from redraw import redraw

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
CAUSAL = torch.ones(4, 4, dtype=torch.bool).tril()


class Windows(nn.Module):
    """Attention in each of four windows of four places, over a chosen number of axes."""

    def __init__(self, axes: int, mask: torch.Tensor | None = None, *, is_causal: bool = False) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 18), nn.Linear(6, 5)
        self.axes, self.mask, self.is_causal = axes, mask, is_causal

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.qkv(self.stem(image).flatten(2).transpose(1, 2))
        batch = image.shape[0]
        shape = {3: (batch * 4, 4, 18), 4: (batch, 4, 4, 18), 5: (batch, 2, 2, 4, 18)}[self.axes]
        q, k, v = tokens.reshape(shape).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, is_causal=self.is_causal
        )
        return self.head(mixed.reshape(batch, 16, 6).tanh().mean(1))


class OwnKernels(nn.Module):
    """Each image is convolved with kernels of its own: the images are groups of one convolution."""

    def __init__(self, stride: int, padding: tuple[int, int], dilation: int, *, has_bias: bool) -> None:
        super().__init__()
        self.stem, self.kernels, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 8 * 3 * 3 * 2), nn.Linear(8, 5)
        self.bias = nn.Linear(6, 8) if has_bias else None
        self.options = {"stride": stride, "padding": padding, "dilation": dilation}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.stem(image)
        batch, channels, height, width = maps.shape
        mean = maps.mean((2, 3)).tanh()
        maps = nn.functional.conv2d(
            maps.reshape(1, batch * channels, height, width),
            self.kernels(mean).reshape(batch * 8, 3, 3, 2),
            None if self.bias is None else self.bias(mean).reshape(-1),
            groups=batch * 2,
            **self.options,
        )
        return self.head(maps.reshape(batch, 8, *maps.shape[2:]).tanh().mean((2, 3)))


CASES = {
    "three axes": Windows(3),
    "three axes, mask": Windows(3, CAUSAL),
    "five axes": Windows(5),
    "five axes, causal": Windows(5, is_causal=True),
    "five axes, mask": Windows(5, CAUSAL),
    "five axes, a mask for each head": Windows(
        5, torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    ),
    "own kernels": OwnKernels(1, (1, 0), 1, has_bias=False),
    "own kernels, steps and bias": OwnKernels(2, (0, 2), 2, has_bias=True),
    "five axes, a mask for each group of heads": Windows(
        5, torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2)).unsqueeze(0)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_autograd(name: str, tmp_path: Path) -> None:
    model = redraw(CASES[name], IMAGE, seed=1)
    check(model, model, tmp_path)


@pytest.mark.parametrize("name", ["five axes, mask", "own kernels, steps and bias"])
def test_programs_call_them_too(name: str, tmp_path: Path) -> None:
    model = redraw(CASES[name], IMAGE, seed=1)
    dynamic = ({0: torch.export.Dim("batch")},)
    check(torch.export.export(model, (IMAGE,), dynamic_shapes=dynamic), model, tmp_path)


def check(source: nn.Module | torch.export.ExportedProgram, model: nn.Module, folder: Path) -> None:
    classes = torch.tensor([[1, 4], [0, 2]])
    logits, gradients = autograd(model, ["stem"], IMAGE, classes)
    largest = gradients["stem"].abs().max().item()
    assert largest > 1e-4
    path = folder / "explainer.onnx"
    export(source, IMAGE, path, layer="stem")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {"image": IMAGE.numpy(), "class_index": classes.numpy()}
    found = session.run(["logits", "gradients"], feeds)
    np.testing.assert_allclose(found[0], logits, atol=1e-5)
    np.testing.assert_allclose(found[1], gradients["stem"], atol=1e-5 * largest)


def test_what_the_exporter_takes_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = redraw(Windows(4), IMAGE, seed=1)
    export(model, IMAGE, tmp_path / "explainer.onnx", layer="stem")
    monkeypatch.setattr(torch_model, "Exportable", contextlib.nullcontext)
    export(model, IMAGE, tmp_path / "plain.onnx", layer="stem")
    assert (tmp_path / "explainer.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


class Clipped(nn.Module):
    """As Gemma's linear layers: what goes in and comes out is clipped, at bounds that checkpoints hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        for name, bound in (("low", -torch.inf), ("high", torch.inf)):
            self.register_buffer(name, torch.tensor(bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(self.linear(torch.clamp(x, self.low, self.high)), self.low, self.high)


def test_constants_that_the_exporter_leaves_out_of_its_graph(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.parts = nn.Conv2d(3, 6, 4, stride=4), nn.ModuleList(Clipped() for _ in range(3))
            self.head = nn.Linear(6, 5)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            tokens = self.stem(image).flatten(2).transpose(1, 2)
            tokens = tokens * tokens
            q, k, v = (part(tokens) for part in self.parts)
            return self.head((q * k.tanh() + v).mean(1))

    report = export(Model(), IMAGE[:1], tmp_path / "e.onnx", layer="stem")
    assert report.verification.rules < 1e-8
