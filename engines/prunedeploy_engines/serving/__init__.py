"""Serving bundles: from a request to an answer.

`http` and `grpc` take requests, `core` answers them whatever they came by, `telemetry` tells of them, `server` starts
and stops it all. Only `server` and what it starts need the extra ``serve``.
"""
