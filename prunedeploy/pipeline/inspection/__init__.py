"""What a cfg, a bundle, a build or an ONNX file holds, as plain values for JSON; nothing is run.

- `document`: what a path is, and its document.
- `network`: the layers of a cfg, what may be removed of each, and the totals.
- `keys`: what the options of a cfg mean here, and which are ignored.
- `bundle`: the files of a bundle with what they passed, and the networks before and after.
"""
