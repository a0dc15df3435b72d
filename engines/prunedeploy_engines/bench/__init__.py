"""Measuring models against each other, so that the figures can be quoted.

In the order in which data flows::

    models, rows     what was named -> the rows of a benchmark, each a specification (`calls`)
    rounds           takes turns among rows, each in a `worker_process` that runs `worker`
    calls, images    inside that process: one batch through one model
    latency          the timer, and what is said about its samples
    scenarios        what the figure of a measurement is; `server` finds the highest rate of a server
    matmul           the peak of the machine
    run, document    all of it and the layers that cost most as one JSON document, and reading that again
    compare, pairs   whether a difference between two benchmarks is real
    pictures         pictures and page of a document
"""
