"""From a configuration to a folder with a bundle and a report.

- `stages`: what a stage is, the key of its result, how one sees that a stored result is whole.
- `store`: results of stages on disk, computed once, shared by builds.
- `output_folder`: the folder a build writes into.
- `progress`: how long it still takes.
"""
