"""What `prunedeploy weights` can fetch: addresses, sizes, and the checksums that others have published.

Neither author publishes checksums. Each one here is what somebody who downloads the file checks against, or records of
it, and `PublicFile.source` says who. Sizes are those that the networks' cfgs have: a header of 20 bytes, of 16 in some
files of YOLOv2, and four bytes per value. Where nobody states a checksum, the size is all that can be checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_REDMON = "https://pjreddie.com/media/files/"
_ALEXEY = "https://github.com/AlexeyAB/darknet/releases/download/"
_YOLOV3, _YOLOV4_PRE, _YOLOV4 = (
    f"{_ALEXEY}{tag}/" for tag in ("darknet_yolo_v3_optimal", "darknet_yolo_v4_pre", "yolov4")
)
_ZOO = "openvinotoolkit/open_model_zoo: models/public/{}/model.yml"
_OPENCV = "opencv/opencv_extra: testdata/dnn/download_models.py"
_LFS = "the Git LFS pointer in {}"


@dataclass(frozen=True)
class PublicFile:
    """A file on the network and what it must be.

    Attributes:
        url: Where it is; of a file that is cut from another one, its name alone.
        size: Its length in bytes.
        sha256: 64 hex digits; None if nobody states them.
        sha1: 40 hex digits, where those are what is stated.
        source: Who states the checksum; empty without one.
        cut_from: The file whose first layers it holds, where it is not published by itself.
    """

    url: str
    size: int
    sha256: str | None = None
    sha1: str | None = None
    source: str = ""
    cut_from: PublicFile | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def fetched(self) -> PublicFile:
        """What comes over the network."""
        return self.cut_from or self

    @property
    def checked_by(self) -> str | None:
        """``sha256``, ``sha1``, or None of a file that cannot be verified."""
        return "sha256" if self.sha256 is not None else "sha1" if self.sha1 is not None else None


_YOLOV3_TINY = PublicFile(
    f"{_REDMON}yolov3-tiny.weights",
    35_434_956,
    "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
    source="computed from a genuine file, whose heads match C Darknet; emgucv/emgucv agrees",
)

WEIGHTS: Mapping[str, PublicFile] = {
    "yolov3": PublicFile(
        f"{_REDMON}yolov3.weights",
        248_007_048,
        "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297",
        source="emgucv/emgucv: Emgu.CV.Models; ros/meta-ros agrees",
    ),
    "yolov3-tiny": _YOLOV3_TINY,
    "yolov3-spp": PublicFile(
        f"{_REDMON}yolov3-spp.weights",
        252_209_544,
        "87a1e8c85c763316f34e428f2295e1db9ed4abcec59dd9544f8052f50de327b4",
        source="emgucv/emgucv: Emgu.CV.Models",
    ),
    "yolov2": PublicFile(
        f"{_REDMON}yolov2.weights",
        203_934_260,
        "d9945162ed6f54ce1a901e3ec537bdba4d572ecae7873087bd730e5a7942df3f",
        source="ros/meta-ros: the recipe of darknet-ros; clibdev/pytorch-yolo2 agrees",
    ),
    "yolov2-tiny": PublicFile(
        f"{_REDMON}yolov2-tiny.weights",
        44_948_600,
        "16f4e870f1aed83f0089cb69bfda6b53cb7b2a4a01721be56eaf5c899dfac45f",
        source=f"{_ZOO.format('yolo-v2-tiny-tf')}; ros/meta-ros agrees",
    ),
    "yolov2-voc": PublicFile(
        f"{_REDMON}yolo-voc.weights",
        202_704_260,
        sha1="1cc1a7f8ad12d563d85b76e9de025dc28ac397bb",
        source=_OPENCV,
    ),
    "yolov2-tiny-voc": PublicFile(
        f"{_REDMON}yolov2-tiny-voc.weights",
        63_471_556,
        sha1="24b4bd049fc4fa5f5e95f684a8967e65c625dff9",
        source=_OPENCV,
    ),
    "yolov4": PublicFile(
        f"{_YOLOV3}yolov4.weights",
        257_717_640,
        "e8a4f6c62188738d86dc6898d82724ec0964d0eb9d2ae0f0a9d53d65d108d562",
        source=_ZOO.format("yolo-v4-tf"),
    ),
    "yolov4-tiny": PublicFile(
        f"{_YOLOV4_PRE}yolov4-tiny.weights",
        24_251_276,
        "cf9fbfd0f6d4869b35762f56100f50ed05268084078805f0e7989efe5bb8ca87",
        source=f"{_ZOO.format('yolo-v4-tiny-tf')}; emgucv/emgucv agrees",
    ),
    "yolov4-csp": PublicFile(f"{_YOLOV4_PRE}yolov4-csp.weights", 211_944_840),
    "yolov4x-mish": PublicFile(
        f"{_YOLOV4_PRE}yolov4x-mish.weights",
        399_388_168,
        sha1="a6f2879af2241de2e9730d317a55db6afd0af00b",
        source=_OPENCV,
    ),
    "yolov7": PublicFile(f"{_YOLOV4}yolov7.weights", 147_898_248),
    "yolov7-tiny": PublicFile(f"{_YOLOV4}yolov7-tiny.weights", 24_967_560),
    "yolov7x": PublicFile(f"{_YOLOV4}yolov7x.weights", 285_638_760),
    # The first layers only, to train from.
    "darknet19_448.conv.23": PublicFile(
        f"{_REDMON}darknet19_448.conv.23",
        79_327_120,
        "9b8b4d2e15200d7be487c85d70e18c6be6fffbd1401e9b4eb48e8e0f585d1a1a",
        source=_LFS.format("ranata/wts"),
    ),
    "darknet53.conv.74": PublicFile(
        f"{_REDMON}darknet53.conv.74",
        162_482_580,
        "2495c2690283e4e0bc2050cbd4660b77a8074e14e9c11150c6412fd63db496a7",
        source=_LFS.format("VictorLin000/YOLOv3_mask_detect"),
    ),
    "yolov3-tiny.conv.11": PublicFile(
        "yolov3-tiny.conv.11",
        6_303_188,
        "5ca7b05912254d0876b0e39cb2a1099857f8f808d034938f5337efc47637a525",
        source="computed from a genuine yolov3-tiny.weights",
        cut_from=_YOLOV3_TINY,
    ),
    "yolov3-tiny.conv.15": PublicFile(
        "yolov3-tiny.conv.15",
        30_973_396,
        "7de065b7667a3fe37a1799060ff679ae815900193f0430474ad54c1bb325a47d",
        source=f"{_LFS.format('vdjango/MaskFace')}; the cut of a genuine yolov3-tiny.weights agrees",
        cut_from=_YOLOV3_TINY,
    ),
    "yolov4.conv.137": PublicFile(
        f"{_YOLOV3}yolov4.conv.137",
        170_038_676,
        "11c5286cfbffabc9a3059927401ab3480e9483ceafd3265779a0dc26c769bed0",
        source="Artelnics/opennn: examples/yolo/data/SOURCE.md; achen353/Taiwanese-Traffic-Object-Detection agrees",
    ),
    "yolov4-tiny.conv.29": PublicFile(
        f"{_YOLOV4_PRE}yolov4-tiny.conv.29",
        19_789_716,
        "3c794b8420b12ed2a609daa71d075880e7bd152671323f5eb3e8d9e57e31785b",
        source=_LFS.format("achen353/Taiwanese-Traffic-Object-Detection"),
    ),
    "yolov4-csp.conv.142": PublicFile(f"{_YOLOV4_PRE}yolov4-csp.conv.142", 146_548_116),
    "yolov4x-mish.conv.166": PublicFile(f"{_YOLOV4_PRE}yolov4x-mish.conv.166", 277_307_668),
    "yolov7-tiny.conv.87": PublicFile(f"{_YOLOV4}yolov7-tiny.conv.87", 17_843_092),
    "yolov7.conv.132": PublicFile(f"{_YOLOV4}yolov7.conv.132", 121_266_068),
}
