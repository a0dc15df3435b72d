"""Section ``net``: what is said of the network as a whole. It is no layer."""

from __future__ import annotations

from collections.abc import Mapping

OPTIONS: Mapping[str, str] = {
    "width": "width of the network's input, in pixels",
    "height": "height of the network's input, in pixels",
    "channels": "3 takes colour images, 1 grey ones",
    "letter_box": "1, or left out: images are scaled with their aspect kept, and padded; 0: they are stretched",
}
"""What is read, and what it means."""

TRAINING_ONLY = frozenset(
    # how many images a step takes, and from where
    "batch subdivisions sequential_subdivisions dynamic_minibatch time_steps track augment_speed "
    # how they are changed
    "angle saturation exposure hue aspect flip blur gaussian_noise mixup cutmix mosaic mosaic_bound max_crop min_crop "
    "max_ratio min_ratio center random resize_step "
    # how weights are changed
    "learning_rate learning_rate_min momentum decay adam B1 B2 eps burn_in max_batches max_epochs policy power gamma "
    "step scale steps scales seq_scales sgdr_cycle sgdr_mult ema_alpha clip loss_scale try_fix_nan "
    # what is learned
    "label_smooth_eps attention adversarial_lr contrastive contrastive_jit_flip contrastive_color unsupervised notruth "
    "weights_reject_freq equidistant_point badlabels_rejection_percentage num_sigmas_reject_badlabels "
    # memory, speed and the picture of the loss
    "optimized_memory workspace_size_limit_MB use_cuda_graph max_chart_loss show_receptive_field".split()
)
"""What only Darknet's own training reads, but the last of all and ``use_cuda_graph``, by which it runs on a GPU.

Reference: ``parse_net_options`` of AlexeyAB's Darknet and of pjreddie's.
"""
