"""The report of a build: `page` puts it together from `results.json` and log rows alone."""
