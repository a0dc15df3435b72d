"""HTML and SVG by construction, for the page of a benchmark and the report of a build."""
