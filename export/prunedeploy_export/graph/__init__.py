"""Writing and changing an ONNX graph: `from_torch` writes a network's, `edit` changes a file's."""
