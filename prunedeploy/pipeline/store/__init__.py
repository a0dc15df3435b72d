"""Results of stages on disk: `key` is what a result is stored under, `store` keeps them."""
