"""OpenCV, or one line that says how to install it: ``from onnxplain.opencv import cv2``."""

from __future__ import annotations

from onnxplain.errors import MissingDependencyError

__all__ = ["cv2"]

try:
    import cv2
except ModuleNotFoundError:
    raise MissingDependencyError('OpenCV is not installed; run: pip install "onnxplain[cpu]"') from None
except ImportError as error:  # opencv-python without libGL, say
    raise MissingDependencyError(
        f"OpenCV is installed but does not import ({error}); "
        "run: pip uninstall opencv-python && pip install opencv-python-headless"
    ) from error
