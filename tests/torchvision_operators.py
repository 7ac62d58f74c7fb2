"""Make torchvision importable beside a torch that its C++ operators weren't built for."""

from __future__ import annotations

from importlib import import_module

import torch

_declared: list[torch.library.Library] = []


def declare_torchvision_operators() -> None:
    """Declare the two operators at which torchvision's import stops, where it does.

    A torchvision built for CUDA beside a torch built for the CPU can't load its C++ operators. The networks
    and transforms don't use them; declaring the two is enough.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(operators)  # what a library declares goes when it does
