"""Detectors that other programs exported to ONNX, as networks of ours.

- `onnx_graph`: a file, checked, at one input size, without what does not depend on the image.
- `decoding`: its end: which convolutions the heads are, and which sections decode as it does.
- `trunk`: the rest, node by node; `activations`, `attention` and `focus` are what several nodes make together.
- `cfg_text`: the cfg that grows; `class_names`: names in the file's metadata.
- `onnx_import`: all of it; `imported_files`: written as cfg, weights and names.

No code of the programs that export is used here, nothing is unpickled, and metadata is read as literals.
"""

from prunedeploy.importing.imported_files import CFG, NAMES, WEIGHTS, named, write_imported
from prunedeploy.importing.onnx_import import ImportedDetector, import_onnx

__all__ = ["CFG", "NAMES", "WEIGHTS", "ImportedDetector", "import_onnx", "named", "write_imported"]
