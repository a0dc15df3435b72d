"""Section ``net``: what is said of the network as a whole. It is no layer."""

from __future__ import annotations

OPTIONS = frozenset("width height channels letter_box".split())

TRAINING_ONLY = frozenset(
    "batch subdivisions momentum decay angle saturation exposure hue learning_rate burn_in max_batches "
    "policy steps scales mosaic mixup cutmix flip power max_crop min_crop aspect time_steps ema_alpha label_smooth_eps "
    "max_epochs sgdr_cycle sgdr_mult augment_speed adversarial_lr attention blur gamma gaussian_noise "
    "learning_rate_min loss_scale mosaic_bound optimized_memory resize_step seq_scales step scale try_fix_nan "
    "workspace_size_limit_MB dynamic_minibatch adam B1 B2 eps".split()
)
"""What only Darknet's own training reads."""
