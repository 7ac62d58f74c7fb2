"""Attention over any number of axes: PyTorch's exporter takes it over four alone."""

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


CASES = {
    "three axes": Windows(3),
    "three axes, mask": Windows(3, CAUSAL),
    "five axes": Windows(5),
    "five axes, causal": Windows(5, is_causal=True),
    "five axes, mask": Windows(5, CAUSAL),
    "five axes, a mask for each head": Windows(
        5, torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    ),
    "five axes, a mask for each group of heads": Windows(
        5, torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2)).unsqueeze(0)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_autograd(name: str, tmp_path: Path) -> None:
    model = redraw(CASES[name], IMAGE, seed=1)
    check(model, model, tmp_path)


def test_programs_call_attention_too(tmp_path: Path) -> None:
    model = redraw(Windows(5, CAUSAL), IMAGE, seed=1)
    dynamic = ({0: torch.export.Dim("batch")},)
    check(torch.export.export(model, (IMAGE,), dynamic_shapes=dynamic), model, tmp_path)


def check(source: nn.Module | torch.export.ExportedProgram, model: nn.Module, folder: Path) -> None:
    classes = torch.tensor([[1, 4], [0, 2]])
    logits, gradients = autograd(model, ["stem"], IMAGE, classes)
    assert gradients["stem"].abs().max() > 1e-2
    path = folder / "explainer.onnx"
    export(source, IMAGE, path, layer="stem")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {"image": IMAGE.numpy(), "class_index": classes.numpy()}
    found = session.run(["logits", "gradients"], feeds)
    np.testing.assert_allclose(found[0], logits, atol=1e-5)
    np.testing.assert_allclose(found[1], gradients["stem"], atol=1e-5)


def test_attention_over_four_axes_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = redraw(Windows(4), IMAGE, seed=1)
    export(model, IMAGE, tmp_path / "explainer.onnx", layer="stem")
    monkeypatch.setattr(torch_model, "FourAxes", contextlib.nullcontext)
    export(model, IMAGE, tmp_path / "plain.onnx", layer="stem")
    assert (tmp_path / "explainer.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
