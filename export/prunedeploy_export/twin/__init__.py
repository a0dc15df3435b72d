"""An exported file in PyTorch, with gradients: what an attack on the deployed network itself needs.

`rounding` has what quantisation does to a tensor and to its gradient, `operators` one function per ONNX operator,
`network` reads a file and runs it up to its raw heads, `weights` rounds other weights in the place of its own.
"""
