"""HTTP: the Open Inference Protocol over REST, ``/v1/detect`` and the page."""
