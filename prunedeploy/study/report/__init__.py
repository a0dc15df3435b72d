"""The report of a study: `page` puts it together; figures, tables and claims in modules of their own."""
