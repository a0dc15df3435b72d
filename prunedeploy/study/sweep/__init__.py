"""A sweep: the grid configurations x ratios x seeds, worked off by processes, one row per finished model.

In the order in which data flows:

- `grid`: the configuration of a sweep, and the cells of its grid. No torch.
- `contexts`: what cells run in: one that only plans keys, one that is observed.
- `cell`: the stages of one cell, and what a row takes from them.
- `plan`: every stage of a sweep with what is there already; time left and disk needed.
- `order`: in which order models are trained.
- `tasks`: what an executor is given and what it reports, the executor's interface, which task is next. No torch.
- `worker`, `worker_process`: a process that works off tasks, from inside and from outside.
- `local_executor`: several of them on this machine.
- `ray_cluster`, `ray_executor`, `ray_task`: on a Ray cluster: the connection, the driver's side, the nodes' side.
- `identity`: what must be the same in all of these processes.
- `samples`: pictures of what the networks see and find.
- `driver`: the sweep itself: trains in parallel, then measures latency alone, and appends rows.
"""
