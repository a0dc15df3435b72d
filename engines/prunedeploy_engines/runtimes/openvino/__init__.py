"""OpenVINO, without its telemetry: `runner` runs an ONNX file, `profile` reads back what it executes.

`process` is the same runner in a process of its own, which is the only way to run OpenVINO where PyTorch is.
"""
