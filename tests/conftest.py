"""What the tests need before any of them runs."""

from __future__ import annotations

from importlib import import_module

import torch

try:
    import_module("torchvision")
except RuntimeError:
    # A torchvision built for CUDA beside a torch built for the CPU: its C++ operators don't load, and its
    # import stops at two of them. The networks and transforms don't use them; declaring the two is enough.
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
