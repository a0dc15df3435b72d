"""OpenVINO, without its telemetry: `runner` runs an ONNX file, `profile` reads back what it executes."""
