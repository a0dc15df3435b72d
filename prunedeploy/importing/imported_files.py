"""An imported detector as files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prunedeploy.data.class_names import read_names
from prunedeploy.importing.onnx_import import ImportedDetector
from prunedeploy_engines.errors import OnnxImportError
from prunedeploy_engines.files import write_atomically, write_whole_folder

CFG, WEIGHTS, NAMES = "model.cfg", "model.weights", "model.names"


def named(found: ImportedDetector, names: Path | None = None) -> ImportedDetector:
    """A detector with a name for each class.

    Args:
        found: The detector.
        names: A file with one class name per line, instead of the names that came with the detector.

    Raises:
        OnnxImportError: There are no names, or not as many as classes.
        ConfigError: The file of names cannot be read.
    """
    class_names = found.class_names if names is None else read_names(names)
    classes = found.model.cfg.classes
    if class_names is None:
        what = f"does not name its {classes} classes"
        raise OnnxImportError(what, found.model.cfg.where, "give a file with one name per line: --names FILE")
    if len(class_names) != classes:
        what = f"has {len(class_names)} names, the network has {classes} classes"
        raise OnnxImportError(what, names, "give one name per class, in the order of the network")
    return replace(found, class_names=class_names)


def write_imported(found: ImportedDetector, folder: Path, *, overwrite: bool = False) -> None:
    """Write cfg, weights and, if there are some, class names into a folder, all or nothing.

    Args:
        found: The detector.
        folder: The place.
        overwrite: Replace a folder that is not empty.

    Raises:
        StoreError: There is something already, or the file system refuses.
    """

    def fill(place: Path) -> None:
        found.model.save(place / CFG, place / WEIGHTS)
        if found.class_names is not None:
            write_atomically(place / NAMES, "".join(f"{name}\n" for name in found.class_names).encode())

    write_whole_folder(folder, fill, overwrite=overwrite)
