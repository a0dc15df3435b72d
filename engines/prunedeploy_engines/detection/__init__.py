"""From an image file to detections.

`images` reads, `letterbox` fits the image to the network and maps boxes back, `nms` suppresses, `detections` is what a
caller gets, `drawing` shows it.
"""
