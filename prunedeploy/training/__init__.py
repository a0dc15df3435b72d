"""Training stages.

- `loop`: one resumable loop for every stage; `optimisation` and `checkpoint` are its parts.
- `adversarial`: pre-training and fine-tuning on attacked images, which `inner_attack` or `free` makes.
- `hydra`: score optimisation.
- `quantised`: the network with the roundings of its int8 file, which `adversarial` trains like any other.
- `distributed`: more than one process.
"""
