"""ONNX to a TensorRT engine: `from_onnx` builds it, `precision` reads back what it really computes in."""
