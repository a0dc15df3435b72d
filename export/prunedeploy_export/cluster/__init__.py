"""A bundle as what the servers of a cluster run: Triton's model repository, KServe's manifest."""
