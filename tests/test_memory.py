"""What is kept of a network's activations while it is looked at and verified."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from onnxplain_export import export, list_layers

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Exponential(nn.Module):
    """Its result is what its backward pass needs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), Exponential(), nn.Conv2d(4, 4, 3), Exponential(), nn.Flatten(), nn.Linear(64, 5)
    )


def kept(model: nn.Module) -> dict[str, list[bool]]:
    """Return, filled in by each run with gradients, whether each exponential's numbers are kept."""
    found: dict[str, list[bool]] = {"1": [], "3": []}

    def look(name: str, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if output.grad_fn is None:
            return
        try:
            found[name].append(torch.equal(output.grad_fn._saved_result, output))
        except Exception:  # of what would unpack it, and has nothing to return
            found[name].append(False)

    for name in found:
        model.get_submodule(name).register_forward_hook(partial(look, name))
    return found


def test_looking_for_layers_keeps_nothing(model: nn.Module) -> None:
    found = kept(model)
    list_layers(model, EXAMPLE)
    assert found == {"1": [False], "3": [False]}


def test_autograd_keeps_what_comes_after_the_layer(model: nn.Module, tmp_path: Path) -> None:
    found = kept(model)
    export(model, EXAMPLE, tmp_path / "explainer.onnx", layer="2")
    # Once where layers are looked for, once for the reference.
    assert found == {"1": [False, False], "3": [False, True]}
