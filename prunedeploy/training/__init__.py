"""Training stages.

- `loop`: one resumable loop for every stage; `optimisation` and `checkpoint` are its parts.
- `adversarial`: pre-training and fine-tuning on attacked images, which `inner_attack` or `free` makes.
- `hydra`: score optimisation.
- `distributed`: more than one process.
"""
