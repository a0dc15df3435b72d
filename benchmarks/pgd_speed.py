"""PGD images per second on YOLOv3 at 416, against a plain loop.

    python benchmarks/pgd_speed.py [--batch 4] [--rounds 3]

The plain loop is what one writes first: fp32, ``loss.backward()`` through a network whose parameters require gradients.
Ours is `prunedeploy.attacks.Pgd` in fp32 and in bf16 (which is for training only). All take turns; ratios are of
medians. The adversarial loss is taken by the same fp32 network for all three.
"""

from __future__ import annotations

import argparse

from prunedeploy.process_setup import keep_freed_memory

keep_freed_memory()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from _common import in_turns, median, random_yolov3, say_machine, scenes  # noqa: E402
from torch import Tensor  # noqa: E402

from prunedeploy.attacks import Pgd, ThreatModel  # noqa: E402
from prunedeploy.models import Darknet, yolo_loss  # noqa: E402


def plain_pgd(model: Darknet, images: Tensor, targets: Tensor, threat_model: ThreatModel) -> Tensor:
    """PGD as one writes it first."""
    x_adv = images.clone()
    for _ in range(threat_model.steps):
        x_adv = x_adv.detach().requires_grad_(True)
        model.zero_grad()
        yolo_loss(model(x_adv), targets, model.cfg).total.backward()
        assert x_adv.grad is not None
        x_adv = x_adv.detach() + threat_model.step_size * x_adv.grad.sign()
        x_adv = torch.max(torch.min(x_adv, images + threat_model.eps), images - threat_model.eps).clamp(0, 1)
    return x_adv.detach()


def convolution_gflops(dtype: torch.dtype) -> float:
    """GFLOP/s of one large convolution's forward and input-gradient passes: what the CPU gives for a dtype."""
    x = torch.rand(4, 256, 52, 52).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    weight = torch.rand(512, 256, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)

    def both_passes() -> None:
        y = F.conv2d(x, weight, padding=1)
        torch.autograd.grad(y, x, torch.ones_like(y))

    seconds = median(in_turns({"both": both_passes}, 10)["both"])
    return 2 * 2 * 4 * 52 * 52 * 512 * 256 * 9 / seconds / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    say_machine()
    for dtype in (torch.float32, torch.bfloat16):
        print(f"one large convolution, forward and input gradient, {dtype}: {convolution_gflops(dtype):.0f} GFLOP/s")
    model = random_yolov3()
    images, targets = scenes(arguments.batch, 416)
    threat_model = ThreatModel()
    made: dict[str, Tensor] = {}

    def run(name: str) -> None:
        if name == "plain loop":
            made[name] = plain_pgd(model, images, targets, threat_model)
        else:
            made[name] = Pgd.against(model, threat_model, "bf16" if "bf16" in name else "fp32")(images, targets)

    names = ("plain loop", "ours, fp32", "ours, bf16")
    times = in_turns({name: (lambda name=name: run(name)) for name in names}, arguments.rounds)
    with torch.no_grad():
        clean = float(yolo_loss(model(images), targets, model.cfg).total)
        losses = {name: float(yolo_loss(model(made[name]), targets, model.cfg).total) for name in names}
    plain = median(times["plain loop"])
    print(f"YOLOv3 416 x 416, batch {arguments.batch}, PGD-{threat_model.steps}, clean loss {clean:.2f}")
    print(f"{'':12} {'images/s':>9} {'ratio':>6} {'loss':>9} {'loss / plain':>13}")
    for name in names:
        seconds = median(times[name])
        relative = losses[name] / losses["plain loop"]
        print(f"{name:12} {arguments.batch / seconds:9.3f} {plain / seconds:6.2f} {losses[name]:9.2f} {relative:13.4f}")


if __name__ == "__main__":
    main()
