"""What the tests need before any of them runs."""

from __future__ import annotations

from torchvision_operators import declare_torchvision_operators

declare_torchvision_operators()
