"""The stages of a build, in their order: `score`, `train`, `cut`, `dead_channels`, `export`, `evaluate`, `latency`."""
