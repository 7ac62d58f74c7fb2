"""Write explainer models: logits, activations and class gradients in one `.onnx` file."""
