"""ONNX Runtime: `session` opens one with exactly the providers asked for, `runner` runs it, `profile` reads back."""
