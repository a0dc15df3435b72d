"""What an ONNX file says about itself, read without the ``onnx`` package, which a device does not have.

Only the outermost fields of the file are looked at; the graph with its weights is stepped over. Field numbers
are those of onnx.proto3 (ONNX 1.x): ModelProto has the graph as 7, opset_import as 8 and metadata_props as 14.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from prunedeploy_engines.errors import EngineError

_GRAPH, _OPSET_IMPORT, _METADATA = 7, 8, 14
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LONGEST = 1 << 20  # bytes of one entry that is read; ours have a few hundred


@dataclass(frozen=True)
class NmsInGraph:
    """The suppression that is part of the graph.

    Attributes:
        score_threshold: Detections have a score above it.
        iou_threshold: A box whose IoU with a better one of its class is greater is dropped.
        max_detections: Rows of the output ``detections``.
    """

    score_threshold: float
    iou_threshold: float
    max_detections: int

    @property
    def limit(self) -> str:
        """Its score threshold in words."""
        return (
            f"suppression is part of the graph, which gives detections above a score of {self.score_threshold:g} only"
        )

    def limit_on(self, score_threshold: float) -> str | None:
        """What to say to somebody who asks for a lower score threshold; None if it is not lower."""
        if score_threshold >= self.score_threshold:
            return None
        return f"{self.limit}; the lower threshold of {score_threshold:g} finds no more"


@dataclass(frozen=True)
class OnnxHeader:
    """What a file of ours says about itself; of a foreign file the defaults.

    Attributes:
        opset: Version of the default operator set; None if the file does not say.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        class_names: Class names of the scores, in order; empty if unknown.
        letterbox: Its images are letterboxed; false: stretched to the input.
        uint8_input: Takes ``(N, H, W, 3)`` uint8 instead of ``(N, 3, H, W)`` float32.
        nms: The suppression in the graph, or None.
        quantisation: How an int8 file was made; None for the others.
        metadata: All entries, as they stand in the file.
    """

    opset: int | None
    precision: str
    class_names: tuple[str, ...]
    letterbox: bool
    uint8_input: bool
    nms: NmsInGraph | None
    quantisation: dict[str, Any] | None
    metadata: dict[str, str]


def read_onnx_header(path: str | Path) -> OnnxHeader:
    """Read opset and metadata of an ONNX file; its weights are not read.

    Raises:
        EngineError: The file cannot be read, or is not in ONNX's format.
    """
    path = Path(path)
    opset, metadata, has_graph = None, {}, False
    try:
        with path.open("rb") as file:
            for number, length in _fields(file):
                has_graph |= number == _GRAPH
                if number not in (_OPSET_IMPORT, _METADATA) or length > _LONGEST:
                    continue
                texts = dict(_flat(file.read(length)))
                if number == _METADATA:
                    metadata[_text(texts.get(1, b""))] = _text(texts.get(2, b""))
                elif texts.get(1, b"") in (b"", b"ai.onnx"):  # two names of the default domain
                    opset = texts.get(2, 0)
        if not has_graph:  # many a short file that is something else has fields like a message's
            raise ValueError("it has no graph")
        return _header(opset if isinstance(opset, int) else None, metadata)
    except OSError as error:
        raise EngineError(f"cannot be read ({error.strerror})", where=path) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EngineError(f"is not an ONNX file ({error})", where=path, fix="export it again") from error


def header_from_metadata(metadata: dict[str, str], opset: int | None = None) -> OnnxHeader:
    """The same from entries that a runtime has read, e.g. ONNX Runtime's ``custom_metadata_map``.

    Raises:
        EngineError: An entry of ours is not readable.
    """
    try:
        return _header(opset, metadata)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EngineError(f"the model's metadata cannot be read ({error})", fix="export it again") from error


def _header(opset: int | None, metadata: dict[str, str]) -> OnnxHeader:
    nms, quantisation = metadata.get("nms"), metadata.get("quantisation")
    return OnnxHeader(
        opset=opset,
        precision=metadata.get("precision", "fp32"),
        class_names=tuple(json.loads(metadata.get("class_names", "[]"))),
        letterbox=metadata.get("letterbox") != "false",
        uint8_input=metadata.get("uint8_input") == "true",
        nms=None if nms is None else NmsInGraph(**json.loads(nms)),
        quantisation=None if quantisation is None else dict(json.loads(quantisation)),
        metadata=metadata,
    )


def _fields(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Number and length of the length-delimited fields of a message that is a whole file.

    The file stands at the content of the field, which may be read or left.
    """
    end = file.seek(0, 2)
    file.seek(0)
    if end == 0:
        raise ValueError("it is empty")
    while file.tell() < end:
        key = _varint(file)
        number, kind = key >> 3, key & 7
        value = _varint(file) if kind in (_VARINT, _LENGTH) else 0
        length = {_VARINT: 0, _FIXED64: 8, _FIXED32: 4, _LENGTH: value}.get(kind, -1)
        start = file.tell()
        if length < 0 or number == 0 or start + length > end:
            raise ValueError(f"at byte {start}")
        if kind == _LENGTH:
            yield number, length
        file.seek(start + length)


def _flat(content: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a small message: varints as int, the rest as bytes."""
    import io

    file = io.BytesIO(content)
    while file.tell() < len(content):
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            yield number, _varint(file)
        elif kind == _LENGTH:
            length = _varint(file)
            if length > len(content) - file.tell():
                raise ValueError("an entry is cut short")
            yield number, file.read(length)
        else:
            raise ValueError(f"an entry has a field of type {kind}")


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise ValueError(f"at byte {file.tell()}")
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return value


def _text(content: Any) -> str:
    if not isinstance(content, bytes):
        raise ValueError("an entry is not text")
    return content.decode("utf-8")
