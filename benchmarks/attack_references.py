"""Our attacks beside those of torchattacks and ART, from the same start, by the same loss, on a small detector.

    python benchmarks/attack_references.py [--out docs/measurements/attack-references.txt]

Both libraries attack classifiers. The detector becomes one: of an image's detection loss L, two logits (z, 0) whose
cross-entropy for class 0 is L, so that what rises there is what rises here.

torchattacks' APGD counts rises of the loss otherwise than algorithm 1 of the paper does: it compares the first step not
with the start's loss but with 0, and the step after a return to the best point not with that point's loss but with that
of the point left behind. Its rows stand twice, as it is and with the paper's counting put in.

Its C&W has no search for c and stops the whole batch where the batch's sum no longer falls. Here it has the same c, and
does not stop. It takes the arctanh of the pixels as they are, where the authors and we draw them in by a millionth: a
pixel of 0 or 1 is infinite there and never moves. Adam divides a gradient by its size, so that a small difference at
the start is a larger one later; its row stands twice, from its start and from ours. ART's C&W descends by a line search
in place of Adam: its images are others, so distances are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import say_machine
from numpy.typing import NDArray
from torch import Tensor, nn

from prunedeploy.attacks import Apgd, Pgd, ThreatModel
from prunedeploy.attacks.carlini_wagner import smallest_change
from prunedeploy.attacks.found_objects import Counting, Objects
from prunedeploy.attacks.norms import Norm
from prunedeploy.attacks.objectives import objective_for
from prunedeploy.models import Darknet, FoldedDarknet, decode, load_darknet, yolo_losses
from prunedeploy.models.darknet_cfg import parse_cfg
from prunedeploy.training.adversarial import recalibrate_normalisation

try:
    import torchattacks
    from art.attacks.evasion import CarliniL2Method, FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier
except ImportError as error:
    sys.exit(f"{error}: pip install torchattacks==3.5.1 adversarial-robustness-toolbox==1.20.1 six scikit-learn")

CFG = """
[net]
width=16
height=16
channels=3
[convolutional]
filters=8
size=3
pad=1
batch_normalize=1
activation=leaky
[convolutional]
filters=12
size=3
stride=2
pad=1
batch_normalize=1
activation=mish
[maxpool]
size=2
stride=2
[convolutional]
filters=14
size=1
activation=linear
[yolo]
mask=0,1
anchors=5,6,9,8
classes=2
iou_loss=ciou
"""
TARGETS = torch.tensor(
    [[0, 0, 0.3, 0.4, 0.3, 0.3], [0, 1, 0.7, 0.6, 0.5, 0.4], [1, 1, 0.5, 0.5, 0.6, 0.5], [3, 0, 0.2, 0.8, 0.3, 0.2]]
)
IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(4, dtype=torch.long)
EPS, EPS_L2 = 0.05, 0.5
C, ADAM_STEPS = 1.0, 60


class AsClassifier(nn.Module):
    """Two logits of an image: ``first(images) (B,)`` and 0."""

    def __init__(self, first: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = first
        self.unused = nn.Parameter(torch.zeros(1))  # both libraries ask parameters for their device

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 2)``."""
        first = self.first(images)
        return torch.stack((first, torch.zeros_like(first)), dim=1)


class PaperCounting(torchattacks.APGD):
    """torchattacks' APGD with the rises of the loss counted as algorithm 1 of the paper counts them."""

    def begin(self, losses: NDArray[np.float32]) -> None:
        """Losses of the start, ``(B,)``."""
        self.before, self.best, self.returned = losses, losses, np.ones(len(losses), np.bool_)

    def check_oscillation(
        self, x: NDArray[np.float32], j: int, k: int, y5: NDArray[np.float32], k3: float = 0.75
    ) -> NDArray[np.bool_]:
        """Condition 1 after step ``j``: losses ``x (steps, B)``, of which the last ``k`` count, and the best ``y5``."""
        values = np.concatenate((self.before[None], x[j - k + 1 : j + 1]))
        few = (values[1:] > values[:-1]).sum(0) <= k * k3
        self.returned = few | (~self.returned & (self.best >= y5))
        self.best = y5.copy()
        self.before = np.where(self.returned, y5, x[j])
        return few


class CarliniWagnerFromOurStart(torchattacks.CW):
    """torchattacks' C&W with the images drawn in by a millionth before arctanh, as the paper's authors do."""

    def inverse_tanh_space(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] to all numbers."""
        return torch.atanh((2 * x - 1) * (1 - 1e-6))


class NeverStopping(int):
    """A number of steps of which no tenth is ever over, so that torchattacks' C&W runs them all."""

    def __floordiv__(self, _: int) -> int:
        return int(self)


def main() -> None:
    """Print the greatest difference of a pixel, and the share of pixels that differ, for each attack and library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="art|torchattacks")
    output = arguments.out.open("w", encoding="utf-8") if arguments.out is not None else None
    with contextlib.ExitStack() as stack:
        if output is not None:
            stack.enter_context(output)
            stack.enter_context(contextlib.redirect_stdout(Both(sys.stdout, output)))
        say_machine()
        print(f"{len(IMAGES)} images of 16 x 16 pixels in [0, 1]; differences from our images")
        print(f"{'attack':<22}{'reference':<36}{'greatest':>10}{'> 1e-6':>8}")
        for attack, reference, ours, theirs in comparisons():
            difference = (ours - theirs).abs()
            share = float((difference > 1e-6).float().mean())
            print(f"{attack:<22}{reference:<36}{float(difference.max()):>10.1e}{share:>8.2%}", flush=True)
        print("\nL2 distance at which the least margin of an image's object is 0, by image")
        for name, values in distances():
            print(f"{name:<58}{'  '.join(f'{value:.4f}' for value in values)}", flush=True)


class Both(io.TextIOBase):
    """Writes into two streams."""

    def __init__(self, *streams: Any) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        """To both."""
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Both."""
        for stream in self.streams:
            stream.flush()


def small_detector() -> Darknet:
    """With random weights and statistics that fit them."""
    model = load_darknet(parse_cfg(CFG), seed=1)
    recalibrate_normalisation(model, [IMAGES])
    return model.eval()


def comparisons() -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Attack, reference, our images, the reference's."""
    model = small_detector()
    network = FoldedDarknet(model)

    def logit(images: Tensor) -> Tensor:
        losses = yolo_losses(network(images), TARGETS, model.cfg)
        # softplus(-z) = L for z = -log(exp(L) - 1)
        return -(losses + torch.log(-torch.expm1(-losses)))

    classifier = AsClassifier(logit)
    art = in_art(classifier)
    settings = ThreatModel(eps=EPS, step_size=0.02, steps=20)
    ours = Pgd.against(model, settings)(IMAGES, TARGETS)
    theirs = torchattacks.PGD(classifier, EPS, 0.02, 20, random_start=False)(IMAGES, LABELS)
    yield "PGD-20", "torchattacks", ours, theirs
    pgd = ProjectedGradientDescentPyTorch(art, np.inf, EPS, 0.02, max_iter=20, num_random_init=0, verbose=False)
    yield "PGD-20", "ART", ours, generated(pgd)
    ours = Pgd.fgsm(model, EPS)(IMAGES, TARGETS)
    yield "FGSM", "torchattacks", ours, torchattacks.FGSM(classifier, EPS)(IMAGES, LABELS)
    yield "FGSM", "ART", ours, generated(FastGradientMethod(art, np.inf, EPS))
    norms: tuple[tuple[Norm, str, float], ...] = (("linf", "Linf", EPS), ("l2", "L2", EPS_L2))
    for norm, theirs_norm, eps in norms:
        for steps in (10, 20, 50):
            start, theirs = apgd_of(torchattacks.APGD(classifier, theirs_norm, eps, steps), classifier)
            ours = apgd(model, network, norm, eps, steps, start)
            yield f"APGD-{steps}, {theirs_norm}", "torchattacks, as it is", ours, theirs
            attack = PaperCounting(classifier, theirs_norm, eps, steps)
            attack.begin(nn.functional.cross_entropy(classifier(start), LABELS, reduction="none").detach().numpy())
            _, theirs = apgd_of(attack, classifier)
            yield f"APGD-{steps}, {theirs_norm}", "torchattacks, the paper's counting", ours, theirs
    margin = margin_of(network, IMAGES)
    found, _ = smallest_change(IMAGES, aim_of(margin), steps=ADAM_STEPS, searches=1, learning_rate=0.01, first_c=C)
    for kind, whose in ((torchattacks.CW, "as it is"), (CarliniWagnerFromOurStart, "from our start")):
        attack = kind(AsClassifier(margin), c=C, steps=NeverStopping(ADAM_STEPS), lr=0.01)
        yield f"C&W, c = {C:g}", f"torchattacks, {whose}", found, attack(IMAGES, LABELS)


def apgd(model: Darknet, network: FoldedDarknet, norm: Norm, eps: float, steps: int, start: Tensor) -> Tensor:
    """Ours from a given start."""
    objective = objective_for("total", lambda: [], TARGETS, model.cfg)
    return Apgd(model, network, eps, steps, norm=norm)._search(start, IMAGES, eps, steps, objective)[0]


def apgd_of(attack: torchattacks.APGD, classifier: AsClassifier) -> tuple[Tensor, Tensor]:
    """Where torchattacks' APGD starts, which it draws itself, and its images with the highest loss."""
    seen: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    torch.manual_seed(3)
    images = attack.attack_single_run(IMAGES, LABELS)[0]
    hook.remove()
    return seen[0], images.detach()


def in_art(classifier: AsClassifier) -> PyTorchClassifier:
    """For ART, with pixels in [0, 1]."""
    return PyTorchClassifier(classifier, nn.CrossEntropyLoss(), (3, 16, 16), 2, clip_values=(0.0, 1.0))


def generated(attack: Any) -> Tensor:
    """Images of an ART attack away from class 0."""
    return torch.from_numpy(attack.generate(IMAGES.numpy(), np.eye(2, dtype=np.float32)[LABELS.numpy()]))


def margin_of(network: FoldedDarknet, clean: Tensor) -> Callable[[Tensor], Tensor]:
    """The margin of each image's best detection, ``(B,)``, above 0.9 of the lowest such score of all images."""
    with torch.no_grad():
        threshold = 0.9 * float(decode(network(IMAGES), network)[1].flatten(1).amax(1).min())
        boxes, scores = decode(network(clean), network)
    rows = []
    for image, at in enumerate(scores.flatten(1).argmax(1).tolist()):
        x0, y0, x1, y1 = (boxes[image, at // 2].clamp(0, 16) / 16).tolist()
        rows.append([image, at % 2, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
    objects = Objects.of(network.cfg, torch.tensor(rows), None, len(clean), Counting(threshold))
    wanted = torch.ones(len(rows), dtype=torch.bool)
    return lambda images: objects.margins_and_lost(network(images), wanted)[0]


def aim_of(margin: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Success where the margin is below 0, as a classifier's class changes there."""

    def aim(images: Tensor) -> tuple[Tensor, Tensor]:
        margins = margin(images)
        return margins, margins < 0

    return aim


def distances() -> Iterator[tuple[str, list[float]]]:
    """Who, and the distance of each image; not a number where the attack failed."""
    network = FoldedDarknet(small_detector())
    margins = [margin_of(network, image[None]) for image in IMAGES]

    def of(attacked: list[Tensor]) -> list[float]:
        pairs = zip(attacked, IMAGES, margins, strict=True)
        return [float((x - image).norm()) if margin(x) <= 0 else float("nan") for x, image, margin in pairs]

    aim = aim_of(margin_of(network, IMAGES))
    found, _ = smallest_change(IMAGES, aim, steps=100, searches=7, learning_rate=0.01, first_c=1.0)
    yield "ours, 7 constants, 100 steps of Adam each", of(list(found[:, None]))
    # ART hands its classifier any part of a batch: one image at a time, each with its own classifier.
    theirs = []
    for image, margin in zip(IMAGES, margins, strict=True):
        attack = CarliniL2Method(
            in_art(AsClassifier(margin)), initial_const=1.0, binary_search_steps=7, max_iter=20, verbose=False
        )
        theirs.append(torch.from_numpy(attack.generate(image[None].numpy(), np.array([[1.0, 0.0]]))))
    yield "ART, 7 constants, 20 line searches each", of(theirs)


if __name__ == "__main__":
    main()
