"""Data sets in other people's formats: one reader per format; labels that are no COCO JSON are read as one.

::

    layout        what a folder was taken for, and where its splits are
    coco_folders  COCO JSON as seven tools arrange it
    labels        what the readers hand over: images with boxes, and what was wrong with them
    yolo          YOLO's text labels, with data.yaml, Darknet's obj.data or classes.txt
    yolo_labels   one of its files
    voc           Pascal VOC's XML, with ImageSets or a folder per split
"""
