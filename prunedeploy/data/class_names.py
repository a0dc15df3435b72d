"""Names of classes: COCO's, and those of a file."""

from __future__ import annotations

from pathlib import Path

from prunedeploy_engines.errors import ConfigError

COCO_NAMES = (
    "person,bicycle,car,motorbike,aeroplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,"
    "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,sofa,pottedplant,bed,diningtable,toilet,tvmonitor,laptop,mouse,remote,"
    "keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
).split(",")
"""The 80 classes of COCO in the order of every network that was trained on it, by Darknet's names."""


def read_names(path: Path) -> list[str]:
    """Read a file with one class name per line.

    Raises:
        ConfigError: It cannot be read, or is empty.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot be read ({reason})", path, "give a file with one class name per line") from None
    if not names:
        raise ConfigError("holds no class name", path, "give a file with one class name per line")
    return names
