"""The pictures and the page of a benchmark's document."""
