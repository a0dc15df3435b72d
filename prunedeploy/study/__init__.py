"""The study: result rows of many builds, their statistics, tables, figures and report. No torch but in `sweep`.

In the order in which data flows:

- `sweep`: builds the models of a grid, in processes of their own, and writes a row for each.
- `design`: the configurations, pairs and metrics that the paper compares.
- `rows`, `row_file`: one result row per finished model; the append-only file they stand in.
- `paper`: the paper's own numbers as such rows.
- `cells`: rows to the runs of each cell of the grid.
- `anova`, `contrasts`: two groups compared, and all comparisons of a study with a correction for their number.
- `tables`, `table_formats`: Tables I to XIV as data, then as HTML, CSV and LaTeX.
- `figure_style`, `curve_figures`, `trade_off_figure`: the figures.
- `claims`, `claim_rules`: what the paper says, and whether these rows say so too.
- `caveats`, `power`: what the numbers do not say.
- `report`, `report_claims`, `report_plots`: one HTML file of all that.

Reference: Anton Liu, Efficient and Adversarially Robust Object Detection, Western University.
"""
