"""TensorRT and TensorRT-RTX.

`runner` runs a plan, `execution` holds it on the GPU, `plan` and `engine_file` say beforehand whether it can run here.
"""
