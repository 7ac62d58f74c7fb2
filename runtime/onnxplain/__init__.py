"""Explain an image classifier with onnxruntime: CAM and Grad-CAM from one explainer `.onnx` file."""

__version__ = "0.1.0"
