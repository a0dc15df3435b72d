"""Serving bundles: from a request to an answer.

`app` and `v2_grpc` take requests (`v2_rest`, `v2_binary`, `detect_routes`; what they refuse is in `limits` and
`security`), `repository` knows the models by name, `served_model` is one of them, `batching` gathers requests for its
runners, `server` starts and stops it all. `settings` and `errors` are shared. Only `server` and what it starts need the
extra ``serve``.
"""
