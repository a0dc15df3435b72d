"""Searching the pruning ratio that meets a target: `search` bisects, `trials` measures with the stages of a build."""
