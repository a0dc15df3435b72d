"""What answers a request, whatever protocol it came by.

`repository` knows the models by name, `served_model` is one of them, `batching` gathers requests for its runners;
`limits`, `security` and `image_room` refuse.
"""
