"""A result row per finished model, and the append-only file they stand in."""
