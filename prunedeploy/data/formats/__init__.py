"""Data sets in other people's formats, read as COCO documents: one reader per format.

::

    labels     what the readers hand over: images with boxes, and what was wrong with them
    yolo       YOLO's text labels, with data.yaml, Darknet's obj.data or classes.txt
    voc        Pascal VOC's XML, with ImageSets or a folder per split
    convert    any of them -> a COCO folder
"""
