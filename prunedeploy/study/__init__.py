"""The study: result rows of many builds, their statistics, tables, figures and report. No torch but in `sweep`.

In the order in which data flows:

- `sweep`: builds the models of a grid, in processes of their own, and writes a row for each.
- `rows`: one result row per finished model, and the append-only file they stand in.
- `statistics`: the paper's design and its own numbers; rows to cells, comparisons, tables and answers to its claims.
- `report`: figures, formats of tables, and one HTML file of all that.

Reference: Anton Liu, Efficient and Adversarially Robust Object Detection, Western University.
"""
