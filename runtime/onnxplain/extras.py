"""The packages that only some commands need: which are missing, and the line that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from onnxplain.errors import MissingDependencyError

_ONNX = ("onnx", "onnx_ir", "onnxscript", "scipy", "threadpoolctl")

# The packages that each extra of pyproject.toml brings, by their import names.
PACKAGES = {
    "onnx": _ONNX,
    "export": (*_ONNX, "torch", "safetensors"),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "evaluate": ("matplotlib", "scipy"),
    "report": ("jinja2",),
    "figure": ("matplotlib",),
    "tiff": ("tifffile", "imagecodecs"),
}


def missing_packages(*extras: str) -> list[str]:
    """Return the packages of `extras` that aren't installed, without importing any."""
    return [package for extra in extras for package in PACKAGES[extra] if find_spec(package) is None]


def require(*extras: str) -> None:
    """Check that the packages of `extras` are installed.

    Raises
    ------
    MissingDependencyError
        One isn't; the message has the line that installs all that are missing.
    """
    extras = tuple(extra for extra in extras if missing_packages(extra))
    if missing := missing_packages(*extras):
        raise MissingDependencyError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            f'run: python -m pip install "onnxplain[{",".join(extras)}]"'
        )
