"""The blocks of a configuration: frozen, of plain values, with their defaults and what makes no sense."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from prunedeploy.config.corruptions import SEVERITIES, corruption_names, severities_of

BUNDLED = "demo"
"""The value of ``model.weights`` and ``data.path`` that means: what comes with the package."""

TRAININGS = ("pretrain", "score_optimization", "finetune")


ROBUST_KEYS = ("adversarial", "attack_objective", "replays", "clean_share")
"""Keys of a training that say how attacked images are made and mixed."""

ATTACK_OBJECTIVES = (
    "total", "box", "objectness", "classes", "class-wise", "rank", "untargeted", "vanish", "fabricate",
    "mislabel-most", "mislabel-least", "flood", "flood-low",
)  # fmt: skip
"""The names of `prunedeploy.attacks.objectives.OBJECTIVES`, which cannot be imported without PyTorch."""


class Block(BaseModel):
    """What all blocks share: no unknown keys, no silent conversions, no changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def as_tuple(value: object) -> object:
    """Let ``a,b`` and a single value stand for a list, as on the command line; ``8,16`` are integers."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        return tuple(int(part) if part.isdecimal() else part for part in parts if part)
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, int) else value


def method_by_its_granularity(value: object) -> object:
    """Let ``weight`` and ``filter`` stand for unstructured and structured pruning."""
    return {"weight": "unstructured", "filter": "structured"}.get(value, value) if isinstance(value, str) else value


Precision = Literal["fp32", "fp16", "int8"]
Runtime = Literal["torch", "onnxruntime", "openvino", "tensorrt"]
Method = Literal["structured", "unstructured", "kernel", "nm", "hybrid"]
AllocationName = Literal["uniform", "global", "erk", "latency"]
Target = Annotated[str, Field(pattern=r"^(cpu|sm\d{2,3})$")]
ScoreName = Literal[
    "scaled", "deeplift", "magnitude", "random", "snip", "taylor", "bn-scale", "gradient-x-input", "file"
]
Budget = Literal["quick", "standard", "full"]
Start = Literal["clean", "white-box"]
Feedback = Literal["scores", "detections"]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Precisions = Annotated[tuple[Precision, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Runtimes = Annotated[tuple[Runtime, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Targets = Annotated[tuple[Target, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Batches = Annotated[tuple[AtLeastOne, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Milestones = Annotated[tuple[Fraction, ...], BeforeValidator(as_tuple)]


def as_input_size(value: object) -> object:
    """Let ``320`` stand for ``320x320``; sides are positive, the width first."""
    sides = re.fullmatch(r"([1-9]\d{0,4})(?:\s*[xX*]\s*([1-9]\d{0,4}))?", str(value).strip())
    if not isinstance(value, (int, str)) or sides is None:
        raise ValueError(f"give one side or width x height in pixels, e.g. 320 or 416x256, not {value!r}")
    return f"{int(sides[1])}x{int(sides[2] or sides[1])}"


def as_severities(value: object) -> object:
    """Let ``1-5``, ``1,3,5``, a list of such severities or a single one stand for ascending severities."""
    return severities_of(",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))


class ModelConfig(Block):
    """The network that is to be pruned.

    With data of classes that the network does not know by name, its heads are re-made for the data's classes and
    start fresh.

    Attributes:
        cfg: Darknet cfg: a path, or the name of one that ships, e.g. ``yolov3-tiny``; or an ONNX file that another
            program exported, which has weights and class names of its own.
        weights: Darknet weights: a path, or ``demo`` for the bundled ones. Not read when ``pretrain.from`` is
            scratch. The first layers alone, such as ``yolov3-tiny.conv.15``, and the weights of the same network with
            another number of classes load what fits; the rest starts fresh.
        names: File with one class name per line: the classes that the weights know; null: COCO's for a network of 80
            classes, else the categories of the training data, by id.
        input_size: Size of the network's input in pixels, one side or width x height, e.g. ``320`` or ``416x256``;
            multiples of the network's largest stride; null: what the cfg says.
        anchors: ``auto``: by k-means on the training boxes; null: what the cfg says.
        letterbox: Scale images with their aspect kept and pad the rest; false: stretch them. null: what ``letter_box=``
            in the cfg's ``[net]`` says, and letterbox without it.
        normalisation: Put batch normalisation into the convolutions that have a bias alone, with statistics of 64
            training images, so that the network computes what it did; null: where ``cfg`` is an ONNX file, which has
            it folded away.
    """

    cfg: str = "yolov3-slim"
    weights: str | None = BUNDLED
    names: str | None = None
    input_size: Annotated[str, BeforeValidator(as_input_size)] | None = None
    anchors: Literal["auto"] | None = None
    letterbox: bool | None = None
    normalisation: bool | None = None

    @model_serializer(mode="wrap")
    def _without_defaults_that_are_younger_than_results(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave out what is not chosen: keys and hashes are made of this, and stay as they were."""
        younger = {"input_size", "anchors", "letterbox", "normalisation"}
        return {key: value for key, value in values(self).items() if value is not None or key not in younger}


class DataConfig(Block):
    """Images and boxes.

    Attributes:
        path: A folder with COCO JSON, YOLO labels or Pascal VOC's XML, recognised by looking; or ``demo`` for the demo
            set, composed at first use.
        train_images: Images drawn at random for training, the rest is for test; null: the split that the data
            has.
        greyscale: Rec. 601 luma in all three channels.
        workers: Processes that load training images; 0: the training process itself. Changes no result.
        allow_bad_images: Leave out test images that cannot be read instead of ending with an error. What is wrong with
            single images and boxes of the training split is always left out, counted and named.
        allow_bad_boxes: The same for boxes of the test split: without area, outside their image, of no known image.
        only_known_classes: Leave out boxes of classes that the network does not have instead of ending with an error.
        eval_images: Measure on this many of the test images, the same ones whatever the seed; null: all of them.
        cache_mb: Memory for keeping letterboxed training images. Changes no result.
    """

    path: str = BUNDLED
    train_images: AtLeastOne | None = None
    greyscale: bool = False
    workers: Count = 0
    allow_bad_images: bool = False
    allow_bad_boxes: bool = False
    only_known_classes: bool = False
    eval_images: AtLeastOne | None = None
    cache_mb: Count = 1024

    @model_serializer(mode="wrap")
    def _without_defaults_that_are_younger_than_results(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave two keys out unless they are set: hashes are made of this, and stay as they were."""
        younger = ("allow_bad_boxes", "only_known_classes")
        return {key: value for key, value in values(self).items() if value or key not in younger}


class AttackConfig(Block):
    """PGD in the L-inf ball on pixels in [0, 1]; the defaults are the paper's (section III-B).

    Attributes:
        eps: Radius of the ball.
        step_size: Length of a step.
        steps: Gradient steps.
        random_start: Start at a random point of the ball instead of the clean image.
        restarts: Independent starts, of which the worst counts per image; more than one needs random_start.
        iterate: What is reported: the ``last`` iterate, or of all of them the ``best`` of each image, with the highest
            loss.
    """

    eps: Fraction = 0.05
    step_size: Annotated[float, Field(gt=0, le=1)] = 0.02
    steps: AtLeastOne = 5
    random_start: bool = False
    restarts: AtLeastOne = 1
    iterate: Literal["last", "best"] = "last"

    @model_serializer(mode="wrap")
    def _without_a_default_that_is_younger_than_results(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave ``iterate`` out unless it is chosen: keys and hashes are made of this, and stay as they were."""
        return {key: value for key, value in values(self).items() if (key, value) != ("iterate", "last")}

    @model_validator(mode="after")
    def _restarts_differ(self) -> AttackConfig:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts > 1 needs random_start: true, or all restarts are the same")
        return self


class SquareConfig(Block):
    """How ``square`` of ``robustness.attacks`` searches, in the words of ``prunedeploy evaluate``.

    Attributes:
        queries: How often it may ask about each image.
        start: ``clean``: from stripes on the clean image; ``white-box``: from what the attacks with gradients left of
            it.
        feedback: What it sees: ``scores`` of all candidates, or the ``detections`` that would be served; null: scores,
            or detections of files with suppression in their graph.
    """

    queries: AtLeastOne = 1000
    start: Start = "clean"
    feedback: Feedback | None = None


class RobustnessConfig(Block):
    """What every network is attacked with beside ``attack``, and what is looked into; nothing unless it is asked for.

    Attributes:
        attacks: ``noise``, ``fgsm``, ``apgd``, ``ensemble`` (the strongest) and ``cw``; fgsm, pgd and apgd with an
            objective of their own, such as ``apgd:box``. What a list under ``attack`` has after its first entry comes
            here. ``square`` attacks no network but its files, on every runtime.
        budget: How far apgd and the ensemble search: 10, 30 or 100 steps of each attack.
        images: Test images that are attacked and corrupted so, drawn as ``data.eval_images`` draws; null: all that are
            measured.
        curve: Radii at which the last of the attacks is repeated, each in (0, 1].
        error_kinds: Sort the errors on clean and attacked images by kind (TIDE), and count what attacks do to objects
            that were found.
        checks: Find out whether the attacks can be believed, on the first of the images.
        corruptions: Weather, noise, blur and compression (``all``, or names of `prunedeploy.config.corruptions`) under
            which every network and every file is measured, on the same images.
        severities: At which severities of them, e.g. ``1-5`` or ``1,3,5``.
        adaptive: Attack the fp16 and int8 files themselves too, by twins that round as they do: with ``attack`` and
            these attacks, on these images.
        square: How ``square`` searches.
    """

    attacks: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    budget: Budget = "standard"
    images: AtLeastOne | None = None
    curve: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(as_tuple)] = ()
    error_kinds: bool = True
    checks: bool = False
    corruptions: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    severities: Annotated[tuple[int, ...], BeforeValidator(as_severities)] = SEVERITIES
    adaptive: bool = False
    square: SquareConfig = SquareConfig()

    @field_validator("corruptions")
    @classmethod
    def _known_corruptions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return corruption_names(value)

    @model_serializer(mode="wrap")
    def _without_defaults_that_are_younger_than_results(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave out what is not chosen: keys and hashes are made of this, and stay as they were."""
        younger = {
            *(() if self.corruptions else ("corruptions", "severities")),
            *(() if self.adaptive else ("adaptive",)),
            *(() if self.square != SquareConfig() else ("square",)),
        }
        return {key: value for key, value in values(self).items() if key not in younger}

    @model_validator(mode="after")
    def _square_is_asked_for(self) -> RobustnessConfig:
        if self.square != SquareConfig() and not self.asks_files:
            raise ValueError("square has no effect without square in robustness.attacks; add it there")
        return self

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything that networks are attacked with."""
        return bool(self.of_attacks.attacks or self.curve or self.checks)

    @property
    def asks_files(self) -> bool:
        """Whether files are attacked by their answers."""
        return "square" in self.attacks

    @property
    def of_attacks(self) -> RobustnessConfig:
        """The same without what no attack on a network depends on: corruptions, and attacks on its files."""
        attacks = tuple(one for one in self.attacks if one != "square")
        return self.model_copy(
            update={"attacks": attacks, "corruptions": (), "adaptive": False, "square": SquareConfig()}
        )

    @property
    def on_files(self) -> tuple[str, ...]:
        """The attacks by gradients that files are attacked with: the build's own first; ``cw`` searches no ball."""
        return tuple(dict.fromkeys(["pgd", *(one for one in self.of_attacks.attacks if one != "cw")]))


class AugmentConfig(Block):
    """What may happen to a training image. The defaults are Darknet's for colour and mild for geometry.

    Attributes:
        flip_probability: Probability of a horizontal flip, in [0, 1].
        scale_min: Smallest zoom; below 1 the image shrinks and is padded. Drawn log-uniformly.
        scale_max: Largest zoom; above 1 the image is cropped.
        aspect: Largest stretch of width against height and its inverse, >= 1; 1 keeps the aspect.
        translate: Largest shift beyond centring, as a fraction of the canvas, in [0, 1).
        hue: Largest hue shift as a fraction of the colour circle, as ``hue`` in a Darknet cfg.
        saturation: Largest factor on saturation and its inverse, >= 1, as ``saturation`` in a Darknet cfg.
        exposure: Largest factor on brightness and its inverse, >= 1, as ``exposure`` in a Darknet cfg.
        min_area_kept: A box that keeps less than this fraction of its area inside the canvas is dropped.
        min_side_px: A box with a side shorter than this after clipping is dropped.
    """

    flip_probability: Fraction = 0.5
    scale_min: Positive = 0.7
    scale_max: Positive = 1.4
    aspect: Factor = 1.15
    translate: BelowOne = 0.1
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    saturation: Factor = 1.5
    exposure: Factor = 1.5
    min_area_kept: Fraction = 0.35
    min_side_px: NonNegative = 2.0

    @model_validator(mode="after")
    def _scales_in_order(self) -> AugmentConfig:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min {self.scale_min:g} is larger than scale_max {self.scale_max:g}")
        return self


class TrainingConfig(Block):
    """One training against PGD. Lengths are steps, never seconds: a result must not depend on the machine.

    Attributes:
        steps: Optimiser steps on attacked images; 0: none.
        batch_size: Images per step.
        optimizer: ``sgd`` (with plain momentum) or ``adamw``.
        lr: Learning rate after the warm-up.
        momentum: Momentum of SGD; AdamW's first beta.
        weight_decay: On weights, not on batch norm and biases.
        schedule: ``cosine`` to 0, ``step`` (times step_factor at each milestone) or ``constant``.
        milestones: For ``step``: fractions of all steps.
        step_factor: For ``step``: what the learning rate is multiplied by at a milestone.
        warmup_steps: Over which the learning rate rises linearly from 0.
        clip_norm: Largest norm of the gradient; null: not clipped.
        augment: Augmentation; null: none.
        attack: The attack to train against. Keys left out are those of the top-level ``attack``.
        adversarial: Which attacked image is trained on: ``pgd``, the attack's; ``mtd``, of one attack on objectness and
            classes and one on boxes, the stronger; ``objectness-aware``, of one on each of the three, the strongest;
            ``free``, the one that the training itself attacks, see replays.
        attack_objective: For ``pgd``: what the attack drives up, see `prunedeploy.attacks.objectives`; ``A + B`` is the
            sum of two.
        replays: For ``free``: steps that each batch is trained on before the next one comes.
        clean_share: Share of each batch that stays clean, rounded down to whole images.
        precision: Precision of the forward and backward passes: ``fp32`` or ``bf16`` autocast.
        ema: Decay of an exponential average of the weights, which is then the result; 0: off.
        checkpoint_every: Steps between checkpoints. Changes no result.
    """

    steps: Count = 0
    batch_size: AtLeastOne = 16
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    momentum: BelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: Milestones = (0.5, 0.75)
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_steps: Count = 0
    clip_norm: Positive | None = 10.0
    augment: AugmentConfig | None = AugmentConfig()
    attack: AttackConfig = AttackConfig()
    adversarial: Literal["pgd", "mtd", "objectness-aware", "free"] = "pgd"
    attack_objective: str = "total"
    replays: AtLeastOne = 4
    clean_share: BelowOne = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: BelowOne = 0.0
    checkpoint_every: AtLeastOne = 500

    @property
    def robust_choices(self) -> dict[str, Any]:
        """Those of `ROBUST_KEYS` that are not at their default, with their values."""
        defaults = {name: TrainingConfig.model_fields[name].default for name in ROBUST_KEYS}
        return {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}

    @model_serializer(mode="wrap")
    def _without_defaults_that_are_younger_than_results(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave out what is not chosen, as `AttackConfig` does ``iterate``."""
        left_out = set(ROBUST_KEYS) - self.robust_choices.keys()
        return {key: value for key, value in values(self).items() if key not in left_out}

    @field_validator("attack_objective")
    @classmethod
    def _known_objectives(cls, value: str) -> str:
        parts = [part.strip() for part in value.split("+")]
        for part in parts:
            if part not in ATTACK_OBJECTIVES:
                nearest = difflib.get_close_matches(part, ATTACK_OBJECTIVES, 1, 0.0)[0]
                raise ValueError(
                    f"must be one of {', '.join(ATTACK_OBJECTIVES)}, or a sum A + B; nearest to {part!r}: {nearest}"
                )
        return " + ".join(parts)

    @model_validator(mode="after")
    def _choices_fit_together(self) -> TrainingConfig:
        chosen = self.robust_choices
        if chosen and self.steps == 0:
            raise ValueError(
                f"{next(iter(chosen))} is for training on attacked images only, but steps is 0; "
                "set steps, or leave it out"
            )
        if "attack_objective" in chosen and self.adversarial != "pgd":
            raise ValueError(
                f"adversarial {self.adversarial} attacks its own objectives; leave attack_objective out, or use "
                "adversarial=pgd"
            )
        if "replays" in chosen and self.adversarial != "free":
            raise ValueError(
                f"replays is only read by adversarial free, but adversarial is {self.adversarial}; leave it out"
            )
        if self.adversarial == "free":
            attack = self.attack
            if "clean_share" in chosen:
                raise ValueError("adversarial free perturbs every image; leave clean_share out")
            if attack.steps > 1 or attack.random_start or attack.iterate != "last":
                raise ValueError(
                    "adversarial free takes one attack step per training step, from where the last one ended; use "
                    "attack.steps=1, attack.random_start=false and attack.iterate=last in the same block"
                )
        return self


class PretrainConfig(TrainingConfig):
    """Step 1: make the network robust.

    Attributes:
        start: In YAML ``from``. ``bundled``: the adversarially pre-trained demo weights, nothing is trained;
            ``given``: train ``model.weights`` against PGD; ``scratch``: random weights, first clean_steps on
                clean images.
        clean_steps: Steps on clean images before those against PGD. What they give is ``original``. They are taken
            from scratch, and from given weights where a part of the network starts fresh or has other anchors (transfer
            training); then 0 means as many as ``steps``.
    """

    start: Literal["bundled", "scratch", "given"] = Field(default="given", alias="from")
    clean_steps: Count = 0
    lr: Positive = 1e-3

    @model_validator(mode="after")
    def _bundled_weights_are_not_trained(self) -> PretrainConfig:
        if self.start == "bundled" and self.robust_choices:
            chosen = next(iter(self.robust_choices))
            raise ValueError(f"from bundled trains nothing, so {chosen} has no effect; use from=given, or leave it out")
        return self


class ScoresConfig(Block):
    """Step 2: one importance score per weight.

    ``scaled`` is HYDRA's, ``deeplift`` the paper's; the others are baselines. Which key matters to which score is
    said below; ``scaled``, ``magnitude``, ``random``, ``bn-scale`` and ``file`` need no images.

    Attributes:
        name: Name of the score.
        backend: For ``deeplift``, what computes it: ``own``, all layers in one pass, or ``captum``, layer by layer:
            many times as long, with the rule ``rescale`` alone, and refused for networks on which Captum is wrong.
        file: For ``file``: path of the scores, safetensors as the ``scores.safetensors`` that a stage leaves.
        images: Training images, drawn with the seed, that a score is taken on; all if there are fewer.
        batch_size: Images per pass. Only ``taylor``, which squares the gradient of each batch, depends on it beyond
            rounding.
        reference: For ``deeplift``, what an image is compared with: the ``mean`` image, ``zeros``, the image itself
            blurred (``blur``), or the path of an image of the network's input size.
        blur_sigma: For ``blur``: standard deviation of the Gaussian, in input pixels.
        deeplift_rule: How activations share out a difference: ``rescale`` or ``reveal-cancel``.
        predictions: For ``deeplift`` and ``gradient-x-input``: per head and image, this many of the highest-scoring
            predictions on the clean image make the target.
        attacked: Take the score on images under the reported attack instead of clean ones.
        normalise: For every score: bring layers to a common scale, which matters where they compete for the same
            ratio: ``none``, ``mean`` (divide by the layer's mean |score|), or ``scaled`` (HYDRA's
            ``sqrt(6 / fan_in) * s / max|s|``).
    """

    name: ScoreName = "scaled"
    backend: Literal["own", "captum"] = "own"
    file: Annotated[str, Field(min_length=1)] | None = None
    images: AtLeastOne = 64
    batch_size: AtLeastOne = 8
    reference: Annotated[str, Field(min_length=1)] = "mean"
    blur_sigma: Positive = 8.0
    deeplift_rule: Literal["rescale", "reveal-cancel"] = "rescale"
    predictions: AtLeastOne = 10
    attacked: bool = False
    normalise: Literal["none", "mean", "scaled"] = "none"

    @model_validator(mode="after")
    def _file_and_backend_fit_the_score(self) -> ScoresConfig:
        if self.name == "file" and self.file is None:
            raise ValueError("name file reads scores from a file, but none is given; add scores.file=PATH.safetensors")
        if self.name != "file" and self.file is not None:
            raise ValueError(f"file is only read by name file, but name is {self.name}; leave it out, or change name")
        if self.backend == "captum" and self.name != "deeplift":
            raise ValueError(
                f"backend captum only computes name deeplift, but name is {self.name}; leave it out, or change name"
            )
        if self.backend == "captum" and self.deeplift_rule != "rescale":
            raise ValueError(
                f"backend captum has no deeplift_rule {self.deeplift_rule}; use deeplift_rule=rescale or backend=own"
            )
        return self


class ScoreOptimizationConfig(TrainingConfig):
    """Step 3: optimise the scores with frozen weights. Left out with 0 steps.

    HYDRA: SGD, lr 0.1, cosine, for a cross-entropy of about 1. The default lr is that on the scale of a detector's
    summed loss; with 0.1 a short optimisation overruns its scores.

    Attributes:
        enabled: Whether this step is taken; null: for every score but ``deeplift``, which replaces steps 2 and 3 in
            the paper. Scores start from HYDRA's scale, whatever score they are.
        share: Take this part of ``finetune.steps`` for this step, in the place of ``steps``: so configurations with and
            without it train for as many steps in all, and so does ratio 0, where nothing is scored.
        freeze_bn: Keep batch norm as it is, with the statistics of the unpruned network. For comparison only: scores
            learn nothing that way.
        bn_lr: Learning rate of batch norm's scale and shift, which train beside the scores.
    """

    enabled: bool | None = None
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    freeze_bn: bool = False
    lr: Positive = 0.005
    bn_lr: Positive = 0.01
    weight_decay: NonNegative = 0.0

    @model_serializer(mode="wrap")
    def _without_defaults_that_are_younger_than_results(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave out `ROBUST_KEYS`, which cannot be chosen here, and ``share`` unless it is."""
        left_out = {*ROBUST_KEYS, *(("share",) if self.share is None else ())}
        return {key: value for key, value in values(self).items() if key not in left_out}

    @model_validator(mode="after")
    def _attacked_by_plain_pgd(self) -> ScoreOptimizationConfig:
        if self.robust_choices:
            chosen = next(iter(self.robust_choices))
            raise ValueError(f"scores are only optimised against PGD on the whole loss; leave {chosen} out")
        return self

    @model_validator(mode="after")
    def _frozen_while_something_is_trained(self) -> ScoreOptimizationConfig:
        if self.share is not None:
            return self
        if self.enabled and self.steps == 0:
            raise ValueError("enabled true asks for score optimisation, but steps is 0; set steps, or leave it out")
        if self.freeze_bn and (self.enabled is False or self.steps == 0):
            why, fix = ("enabled false", "set enabled to true") if self.enabled is False else ("steps 0", "set steps")
            raise ValueError(
                f"freeze_bn keeps batch norm frozen while scores are optimised, but with {why} they are not; "
                f"leave it out, or {fix}"
            )
        return self


class ChannelsConfig(Block):
    """How many channels structured pruning leaves.

    Attributes:
        minimum: Fewest channels of a group.
        multiple: Channels of a group are a multiple of it; 4, 2 and 1 are tried if the ratio cannot be
            reached.
    """

    minimum: AtLeastOne = 8
    multiple: AtLeastOne = 8


class NmConfig(Block):
    """The pattern of n:m pruning: n of every m consecutive input channels live. TensorRT knows 2:4.

    Attributes:
        n: Weights that live.
        m: The size of a block.
    """

    n: AtLeastOne = 2
    m: AtLeastOne = 4

    @model_validator(mode="after")
    def _something_is_removed(self) -> NmConfig:
        if self.n >= self.m:
            raise ValueError(f"n {self.n} must be smaller than m {self.m}, or nothing is removed")
        return self

    @property
    def meets_2_4(self) -> bool:
        """Whether channels 4 i to 4 i + 3 never hold more than 2 weights, which is what TensorRT computes."""
        return self.n == 1 or (self.n == 2 and self.m % 4 == 0)  # four channels touch two blocks at most


class HybridConfig(Block):
    """How hybrid pruning divides its work.

    Attributes:
        filter_share: The part of the removed weights that whole filters take; single weights of what
            remains take the rest.
    """

    filter_share: Fraction = 0.5


class FinetuneConfig(TrainingConfig):
    """Step 5: train the kept weights against PGD. HYDRA: lr 0.01.

    Attributes:
        bn_recalibration_images: Training images on which batch norm's statistics are taken again after the
            cut; 0: off.
        distillation_weight: Weight of the loss towards the robust network's outputs; 0: off.
        distillation_temperature: Temperature of that loss.
    """

    bn_recalibration_images: Count = 0
    distillation_weight: NonNegative = 0.0
    distillation_temperature: Positive = 1.0


class EvaluationConfig(Block):
    """How mAP is measured. Reported attacks always run in fp32 and are those of the top-level ``attack``.

    Attributes:
        score_threshold: The paper's threshold; mAP is reported at it and at map_score_threshold.
        map_score_threshold: COCO's usual threshold.
        iou_threshold: NMS, per class.
        batch_size: Images per forward pass.
        bootstrap: Resamplings of the test images for the interval of every mAP; 0: no interval.
    """

    score_threshold: Fraction = 0.5
    map_score_threshold: Fraction = 0.001
    iou_threshold: Fraction = 0.45
    batch_size: AtLeastOne = 32
    bootstrap: Count = 1000

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> EvaluationConfig:
        if self.map_score_threshold > self.score_threshold:
            raise ValueError("map_score_threshold is larger than score_threshold")
        return self


class LatencyConfig(Block):
    """How long latency is measured, and where.

    Attributes:
        seconds: At least so long per model and runtime.
        min_calls: And at least this many timed calls.
        warmup_seconds: Untimed, before them.
        warmup_calls: And at least this many calls.
        threads: Threads of the runtime; null: as ``threads`` at the top.
        batch: Batch sizes.
        runtimes: One that cannot run on this machine is reported as null.
        flood: Measure every file from image to detections too, as it is and with as much for suppression to do as there
            can be; see docs/flood.md.
    """

    seconds: Positive = 10.0
    min_calls: AtLeastOne = 200
    warmup_seconds: NonNegative = 0.5
    warmup_calls: Count = 10
    threads: AtLeastOne | None = None
    batch: Batches = (1,)
    runtimes: Runtimes = ("torch", "onnxruntime", "openvino", "tensorrt")
    flood: bool = False

    @model_serializer(mode="wrap")
    def _without_a_default_that_is_younger_than_results(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave ``flood`` out unless it is chosen, as `AttackConfig` does ``iterate``."""
        return {key: value for key, value in values(self).items() if value or key != "flood"}


class GatesConfig(Block):
    """What an ONNX file of one precision must pass, against PyTorch in fp32.

    Attributes:
        parity_tolerance: Gate 1: largest max|a - b| / max|a| per output.
        match_iou: Gate 2: after NMS every detection has a match of its class with at least this IoU,
        match_score: and a score that differs by at most this.
        map_tolerance: Gate 3: largest difference of mAP; of int8 the largest loss.
    """

    parity_tolerance: Positive = 1e-4
    match_iou: Fraction = 0.99
    match_score: Fraction = 1e-3
    map_tolerance: Fraction = 1e-3


class Fp16Config(GatesConfig):
    """The gates of the fp16 file."""

    parity_tolerance: Positive = 5e-3
    match_iou: Fraction = 0.95
    match_score: Fraction = 1e-2
    map_tolerance: Fraction = 5e-3


class QatConfig(Block):
    """Quantisation-aware training: the int8 file gets weights of its own, trained with its roundings.

    From the fine-tuned network and the file as it was calibrated, with the other keys of ``finetune``, but in fp32 and
    without a warm-up.

    Attributes:
        steps: Optimiser steps; 0: the int8 file has the weights of the fp32 file.
        lr: Learning rate at the start; null: a tenth of ``finetune.lr``.
    """

    steps: Count = 0
    lr: Positive | None = None


class Int8Config(GatesConfig):
    """How the int8 files are made, and their gates.

    Attributes:
        match_share: Gate 2 wants a match for this share of the detections, and never fails for one alone; gate 1 asks
            it of the predictions. Eight bits move single scores of any real network; what that costs, gate 3 says.
        calibration_images: Training images, drawn with the seed, that the ranges of values are measured on.
        method: How a tensor's range is chosen: all values but 0.01 % (``percentile``), all (``minmax``), or the
            smallest mean squared error (``mse``).
        sensitivity_images: How many of the calibration images each convolution's cost is measured on.
        map_budget: Convolutions are left in fp32, those that cost most first, until clean and robust mAP on
            training images are at most this much lower than the fp32 file's, and gates 1 and 2 are passed; null: as
            calibrated.
        budget_images: Other training images that this is measured on.
        qat: Training with the file's roundings.
    """

    parity_tolerance: Positive = 0.25
    match_iou: Fraction = 0.5
    match_score: Fraction = 0.1
    map_tolerance: Fraction = 0.01
    match_share: Fraction = 0.9
    calibration_images: AtLeastOne = 64
    method: Literal["percentile", "minmax", "mse"] = "percentile"
    sensitivity_images: AtLeastOne = 8
    map_budget: Fraction | None = 0.01
    budget_images: AtLeastOne = 128
    qat: QatConfig = QatConfig()

    @model_serializer(mode="wrap")
    def _without_defaults_that_are_younger_than_results(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave ``match_share`` and ``qat`` out unless they are chosen, as `AttackConfig` does ``iterate``."""
        left_out = {*(("match_share",) if self.match_share == 0.9 else ()), *(("qat",) if not self.qat.steps else ())}
        return {key: value for key, value in values(self).items() if key not in left_out}


class ExportConfig(GatesConfig):
    """The ONNX files and the gates they must pass; the gates written here are those of fp32.

    Attributes:
        opset: ONNX operator set.
        precisions: ONNX files to write for the pruned network.
        uint8_input: Take NHWC uint8 images and normalise in the graph.
        nms: NMS in the graph.
        nms_score_threshold: With ``nms``: detections have a score above it; null: ``evaluation.score_threshold``.
        nms_max_detections: With ``nms``: rows of the output, per image.
        fp16: Its gates.
        int8: How it is made, and its gates.
    """

    opset: Annotated[int, Field(ge=17)] = 17
    precisions: Precisions = ("fp32",)
    uint8_input: bool = False
    nms: bool = False
    nms_score_threshold: Fraction | None = None
    nms_max_detections: AtLeastOne = 100
    fp16: Fp16Config = Fp16Config()
    int8: Int8Config = Int8Config()

    @model_validator(mode="after")
    def _there_is_a_file_to_train(self) -> ExportConfig:
        if self.int8.qat.steps and "int8" not in self.precisions:
            raise ValueError(
                "int8.qat.steps trains the weights of the int8 file, and precisions has none; add it, "
                "e.g. --precision fp32,int8"
            )
        return self


class NmsConfig(Block):
    """The bound on what suppression computes, in the bundle and in the graph; see docs/flood.md.

    mAP is measured without it.

    Attributes:
        max_candidates: Pairs of box and class per image that enter suppression, the best by score. At most 3840, which
            is what TensorRT's TopK takes.
    """

    max_candidates: Annotated[int, Field(ge=1, le=3840)] = 256


class OperatingPointConfig(Block):
    """The score threshold that the pruned network's files are deployed with, and that pictures are drawn at.

    It is chosen per network and file on training images that int8 was not calibrated on; mAP is reported at the
    thresholds of ``evaluation`` all the same. Where it cannot be chosen, ``evaluation.score_threshold`` is used.

    Attributes:
        rule: ``f1``: the best F1; ``precision=0.9``: the highest recall with at least this precision.
        images: How many images it is chosen on, drawn with the seed; fewer if there are not that many.
    """

    rule: str = "f1"
    images: AtLeastOne = 128

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        if re.fullmatch(r"f1|precision=(0(\.\d+)?|\.\d+|1(\.0+)?)", rule) is None:
            raise ValueError("must be f1 or precision=P with P from 0 to 1, e.g. precision=0.9")
        return rule

    @property
    def precision(self) -> float | None:
        """What is asked for; None for the best F1."""
        return None if self.rule == "f1" else float(self.rule.partition("=")[2])


class ReportConfig(Block):
    """The page: grid_images is the number of test images shown with boxes."""

    grid_images: Count = 8


def _first_is_the_attack(data: Any) -> Any:
    """Divide a list under ``attack``: the first entry stays, the others are put before ``robustness.attacks``."""
    if not isinstance(data, dict) or not isinstance(data.get("attack"), list) or not data["attack"]:
        return data
    first, *others = data["attack"]
    block = data.get("robustness") or {}
    if not isinstance(block, dict):
        return data
    own = as_tuple(block.get("attacks", ()))
    divided = {**data, "attack": {} if first == "pgd" else first}
    if others:
        divided["robustness"] = {**block, "attacks": (*others, *(own if isinstance(own, tuple) else ()))}
    return divided


class BuildConfig(Block):
    """Everything that a build depends on, apart from the content of the files it names.

    Attributes:
        name: Name of the configuration; part of the default output folder's name.
        seed: Seed of every random draw.
        threads: Threads of PyTorch on the CPU, part of what makes a result repeatable; null: PyTorch's own choice,
            resolved when the build starts and recorded.
        device: ``auto`` is CUDA where there is one.
        method: ``structured`` removes filters (``filter`` says the same), ``unstructured`` zeroes single weights
            (``weight``), ``kernel`` zeroes k x k slices, ``nm`` zeroes weights in a pattern, ``hybrid`` removes filters
            and then zeroes weights of the rest.
        allocation: How the ratio is shared out over layers: ``uniform``, ``global`` (the lowest scores of the
            network go), ``erk``, or for filters ``latency`` (what costs most measured time per importance goes).
        remove_dead_channels: After ``unstructured``, ``kernel`` and ``hybrid`` pruning: remove the filters that
            compute a constant or that nothing reads, exactly.
        ratio: Fraction of the weights of all prunable convolutions that is removed, in [0, 1). Of ``nm`` it is
            what the pattern gives, so it need not be said.
        attack: What is reported, and what is trained against where a training block says nothing else. May be a list,
            whose first entry is that (``pgd``, or a block of its keys); the others are attacks of ``robustness``.
        targets: What engines are built for: ``cpu`` and compute capabilities such as ``sm86``.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "build"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    threads: AtLeastOne | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    method: Annotated[Method, BeforeValidator(method_by_its_granularity)] = "structured"
    allocation: AllocationName = "uniform"
    remove_dead_channels: bool = True
    ratio: BelowOne = 0.75
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    attack: AttackConfig = AttackConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    pretrain: PretrainConfig = PretrainConfig()
    scores: ScoresConfig = ScoresConfig()
    score_optimization: ScoreOptimizationConfig = ScoreOptimizationConfig()
    channels: ChannelsConfig = ChannelsConfig()
    nm: NmConfig = NmConfig()
    hybrid: HybridConfig = HybridConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    latency: LatencyConfig = LatencyConfig()
    export: ExportConfig = ExportConfig()
    targets: Targets = ("cpu",)
    operating_point: OperatingPointConfig = OperatingPointConfig()
    nms: NmsConfig = NmsConfig()
    report: ReportConfig = ReportConfig()

    @model_serializer(mode="wrap")
    def _without_a_default_that_is_younger_than_results(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave blocks out unless they are chosen, so that hashes stay as they were."""
        younger = {
            "operating_point": OperatingPointConfig(),
            "robustness": RobustnessConfig(),
            "nms": NmsConfig(),
        }
        left_out = {name for name, default in younger.items() if getattr(self, name) == default}
        return {key: value for key, value in values(self).items() if key not in left_out}

    @model_validator(mode="before")
    @classmethod
    def _trainings_inherit_the_attack(cls, data: Any) -> Any:
        data = _first_is_the_attack(data)
        if not isinstance(data, dict) or not isinstance(data.get("attack", {}), dict):
            return data
        filled = dict(data)
        for name in TRAININGS:
            block = filled.get(name, {})
            if isinstance(block, dict) and isinstance(block.get("attack") or {}, dict):
                filled[name] = {**block, "attack": {**data.get("attack", {}), **(block.get("attack") or {})}}
        return filled

    @model_validator(mode="before")
    @classmethod
    def _the_pattern_gives_the_ratio(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("method") != "nm" or "ratio" in data:
            return data
        try:
            pattern = NmConfig.model_validate(data.get("nm", {}))
        except ValidationError:
            return data  # said once more, with its place, when the block itself is read
        return {**data, "ratio": 1.0 - pattern.n / pattern.m}

    @model_validator(mode="after")
    def _start_fits_the_weights(self) -> BuildConfig:
        has_its_own = self.model.cfg.lower().endswith(".onnx")
        if self.pretrain.start == "given" and self.model.weights is None and not has_its_own:
            raise ValueError("model.weights is missing: give it, or use pretrain.from=scratch")
        if self.pretrain.start == "bundled" and self.model.weights != BUNDLED:
            raise ValueError(f"pretrain.from=bundled needs model.weights={BUNDLED}; use given or scratch")
        return self

    @model_validator(mode="after")
    def _deeplift_optimises_nothing_unless_told(self) -> BuildConfig:
        block = self.score_optimization
        if block.freeze_bn and block.enabled is None and self.scores.name == "deeplift":
            raise ValueError(
                "score_optimization.freeze_bn keeps batch norm frozen while scores are optimised, but those of "
                "deeplift are not; leave it out, or use score_optimization.enabled=true"
            )
        return self

    @property
    def optimises_scores(self) -> bool:
        """Whether step 3 is taken wherever something is pruned."""
        block = self.score_optimization
        taken = block.steps > 0 or block.share is not None
        return taken and (self.scores.name != "deeplift" if block.enabled is None else block.enabled)

    def with_divided_steps(self) -> BuildConfig:
        """The same with ``score_optimization.share`` made into steps of either training; what stages are given."""
        block = self.score_optimization
        if block.share is None:
            return self
        divided = self.optimises_scores and self.ratio > 0
        steps = round(block.share * self.finetune.steps) if divided else 0
        return self.model_copy(
            update={
                "score_optimization": block.model_copy(update={"steps": steps, "share": None}),
                "finetune": self.finetune.model_copy(update={"steps": self.finetune.steps - steps}),
            }
        )

    @property
    def sparse_weights(self) -> bool:
        """Whether TensorRT is asked for sparse kernels: the weights have a pattern that it can use."""
        return self.method == "nm" and self.nm.meets_2_4
