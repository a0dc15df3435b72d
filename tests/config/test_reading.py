"""What ships loads, what is written wins in order, every mistake is one line that says where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.config import (
    OPTIONS,
    AttackConfig,
    AugmentConfig,
    BuildConfig,
    as_dict,
    config_hash,
    default_out,
    known_keys,
    load_config,
    result_settings,
)
from prunedeploy_engines.detection.nms import MAX_CANDIDATES
from prunedeploy_engines.errors import ConfigError
from prunedeploy_export.graph.nms import LARGEST_TOP_K

SHIPPED = ["demo", "smoke", "blood-cells", "yolov3-coco", "yolov3-tiny-coco", "yolov8n"]
SWEEPS = ["paper", "study-demo", "study-smoke"]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write ``my.yaml`` into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("my.yaml").write_text(text, encoding="utf-8")
        return "my.yaml"

    return write


# What ships


def test_every_shipped_configuration_loads_and_carries_its_name(repository: Path) -> None:
    assert sorted(path.stem for path in (repository / "configs").glob("*.yaml")) == sorted(SHIPPED + SWEEPS)
    hashes = set()
    for name in SHIPPED:
        config = load_config(name)
        assert config.name == name
        assert config == load_config(f"{name}.yaml") == load_config(repository / "configs" / f"{name}.yaml")
        hashes.add(config_hash(config))
    assert len(hashes) == len(SHIPPED)


PAPER_ATTACK = AttackConfig(eps=0.05, step_size=0.02, steps=5, random_start=False, restarts=1)


@pytest.mark.parametrize("name", ["demo", "yolov3-coco", "yolov3-tiny-coco"])
def test_shipped_configurations_report_the_papers_attack_and_score_weights_as_hydra(name: str) -> None:
    config = load_config(name, options={"method": "unstructured"})
    assert config.attack == PAPER_ATTACK
    assert (config.evaluation.score_threshold, config.evaluation.iou_threshold) == (0.5, 0.45)
    assert config.scores.name == "scaled"
    # HYDRA's 0.1 is for a cross-entropy; this is that on the scale of a detector's loss.
    block = config.score_optimization
    assert (block.optimizer, block.lr) == ("sgd", 0.005)
    assert config.score_optimization.schedule == "cosine"


@pytest.mark.parametrize("name", ["yolov3-coco", "yolov3-tiny-coco"])
def test_coco_configurations_train_against_the_reported_attack_without_levers(name: str) -> None:
    config = load_config(name)
    for training in (config.pretrain, config.score_optimization, config.finetune):
        assert training.attack == PAPER_ATTACK
        assert training.ema == 0
    assert (config.finetune.optimizer, config.finetune.lr) == ("sgd", 0.01)
    assert (config.finetune.bn_recalibration_images, config.finetune.distillation_weight) == (0, 0)


def test_demo_trains_with_a_cheaper_attack_of_the_same_radius() -> None:
    config = load_config("demo")
    for training in (config.pretrain, config.score_optimization, config.finetune):
        assert training.attack.eps == PAPER_ATTACK.eps
        assert training.attack.steps * training.attack.step_size >= training.attack.eps


@pytest.mark.parametrize("name", ["yolov3-coco", "yolov3-tiny-coco"])
def test_coco_configurations_train_for_twenty_epochs_of_the_papers_subset(name: str) -> None:
    config = load_config(name)
    assert config.data.train_images == 50_000
    for training in (config.pretrain, config.score_optimization, config.finetune):
        assert training.steps * training.batch_size / 50_000 == pytest.approx(20, rel=1e-2)


def test_loading_imports_neither_torch_nor_numpy() -> None:
    program = """
import sys
from prunedeploy.config import load_config
load_config("demo")
print({"torch", "numpy"} & set(sys.modules))
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"


# Who wins


def test_options_win_over_set_and_set_over_the_file_and_the_file_over_defaults(written: Any) -> None:
    path = written("ratio: 0.1\nseed: 1\nfinetune:\n  lr: 0.5\n  steps: 7\n")
    config = load_config(path, ["seed=2", "ratio=0.2", "finetune.lr=1e-3", "seed=3"], {"ratio": 0.3, "method": None})
    assert (config.ratio, config.seed, config.method) == (0.3, 3, "structured")
    assert (config.finetune.lr, config.finetune.steps, config.finetune.batch_size) == (1e-3, 7, 16)


def test_every_option_sets_its_key() -> None:
    options = {
        "ratio": 0.5,
        "method": "unstructured",
        "scores": "magnitude",
        "allocation": "global",
        "cfg": Path("a.cfg"),
        "weights": "a.weights",
        "input_size": "320",
        "anchors": "auto",
        "letterbox": False,
        "data": "folder",
        "precision": ("fp32", "int8"),
        "qat": 3,
        "target": "cpu,sm86",
        "uint8_input": True,
        "nms": True,
        "operating_point": "precision=0.9",
        "seed": 7,
    }
    assert options.keys() == OPTIONS.keys()
    config = load_config("demo", (), options)
    assert (config.ratio, config.method, config.scores.name, config.seed) == (
        0.5,
        "unstructured",
        "magnitude",
        7,
    )
    assert (config.model.cfg, config.model.weights, config.data.path) == ("a.cfg", "a.weights", "folder")
    assert (config.export.precisions, config.targets) == (("fp32", "int8"), ("cpu", "sm86"))
    assert config.export.int8.qat.steps == 3
    assert config.export.uint8_input
    assert config.export.nms
    assert config.allocation == "global"
    assert (config.model.input_size, config.model.anchors, config.model.letterbox) == ("320x320", "auto", False)


@pytest.mark.parametrize(("given", "size"), [("320", "320x320"), ("416x256", "416x256"), ("416 X 256", "416x256")])
def test_input_sizes_are_width_x_height(given: str, size: str) -> None:
    assert load_config("demo", [f"model.input_size={given}"]).model.input_size == size
    assert load_config("demo", (), {"input_size": given}).model.input_size == size


@pytest.mark.parametrize("size", ["0", "32x", "-64", "64x64x3", "wide", "true", "[64, 64]", "1e9", "32x0", "32.0"])
def test_input_sizes_that_are_none_are_refused_with_their_key(size: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.input_size.*width x height") as caught:
        load_config("demo", [f"model.input_size={size}"])
    assert "\n" not in str(caught.value)


def test_values_of_set_are_yaml() -> None:
    assignments = [
        "finetune.augment=null",
        "data.greyscale=true",
        "latency.batch=1,8",
        "targets=[cpu, sm89]",
        "score_optimization.augment.hue=0",
        "finetune={lr: 2e-2, ema: .5}",
        "model.cfg=a=b.cfg",
        "finetune.milestones=[]",
    ]
    config = load_config("demo", assignments)
    assert config.finetune.augment is None
    assert config.data.greyscale
    assert config.latency.batch == (1, 8)
    assert config.targets == ("cpu", "sm89")
    assert config.score_optimization.augment == AugmentConfig(hue=0, saturation=1.3, exposure=1.2)  # the file's
    assert (config.finetune.lr, config.finetune.ema, config.finetune.batch_size) == (0.02, 0.5, 16)
    assert config.model.cfg == "a=b.cfg"
    assert config.finetune.milestones == ()


def test_trainings_attack_as_reported_unless_they_say_otherwise(written: Any) -> None:
    path = written("attack: {eps: 0.1, steps: 10}\nfinetune:\n  attack: {steps: 2}\npretrain: {attack: null}\n")
    config = load_config(path)
    assert (config.finetune.attack.eps, config.finetune.attack.steps) == (0.1, 2)
    assert config.pretrain.attack == config.score_optimization.attack == config.attack
    assert config.attack.step_size == 0.02


def test_given_network_is_pretrained_instead_of_the_bundled_one() -> None:
    assert load_config("demo").pretrain.start == "bundled"
    given = load_config("demo", (), {"cfg": "a.cfg", "weights": "a.weights"})
    assert given.pretrain.start == "given"
    scratch = load_config("demo", ["pretrain.from=scratch"], {"cfg": "a.cfg"})
    assert (scratch.pretrain.start, scratch.model.cfg) == ("scratch", "a.cfg")
    with pytest.raises(ConfigError, match="--cfg: needs the weights of that network; add --weights"):
        load_config("demo", (), {"cfg": "a.cfg"})
    with pytest.raises(ConfigError, match=r"pretrain\.from=bundled needs model\.weights=demo"):
        load_config("demo", ["pretrain.from=bundled"], {"weights": "a.weights"})


def test_empty_file_is_all_defaults_and_shipped_name_stands_for_a_missing_file(written: Any) -> None:
    assert load_config(written("")) == BuildConfig()
    assert load_config("demo.yaml").name == "demo"
    Path("demo.yaml").write_text("name: mine\n")
    assert load_config("demo.yaml").name == "mine"
    assert load_config("demo").name == "demo"


# Hash


def test_hash_changes_with_every_value_and_not_with_how_it_was_written(written: Any) -> None:
    base = load_config("demo")
    assert config_hash(base) == config_hash(load_config("demo", ["finetune.lr=0.0020", "attack={eps: 5e-2}"]))
    assert config_hash(base) == config_hash(load_config(written(Path(_shipped("demo")).read_text() + "\n# end\n")))
    seen = {config_hash(base)}
    changes = [
        "seed=1",
        "ratio=0.5",
        "finetune.lr=0.02",
        "finetune.augment=null",
        "attack.eps=0.04",
        "threads=2",
    ]
    seen |= {config_hash(load_config("demo", [change])) for change in changes}
    assert len(seen) == 1 + len(changes)
    assert all(len(value) == 64 for value in seen)


def _shipped(name: str) -> str:
    from prunedeploy.resources import config_path

    return str(config_path(name))


def test_result_settings_leave_out_what_changes_no_result() -> None:
    fast = load_config("demo", ["data.workers=4", "data.cache_mb=1", "finetune.checkpoint_every=7"])
    slow = load_config("demo")
    assert as_dict(fast) != as_dict(slow)
    assert result_settings(fast) == result_settings(slow)
    settings = result_settings(fast.pretrain)
    assert settings["from"] == "bundled"
    assert "checkpoint_every" not in settings


def test_younger_data_keys_are_in_no_hash_unless_they_are_set() -> None:
    plain = load_config("demo")
    assert {"allow_bad_boxes", "only_known_classes"}.isdisjoint(as_dict(plain)["data"])
    for key in ("allow_bad_boxes", "only_known_classes"):
        assert config_hash(load_config("demo", [f"data.{key}=false"])) == config_hash(plain)
        chosen = load_config("demo", [f"data.{key}=true"])
        assert as_dict(chosen)["data"] == {**as_dict(plain)["data"], key: True}
        assert config_hash(chosen) != config_hash(plain)


def test_younger_keys_are_in_no_hash_unless_they_are_chosen() -> None:
    plain = load_config("demo")
    assert "operating_point" not in as_dict(plain)
    assert "match_share" not in as_dict(plain)["export"]["int8"]
    said = load_config("demo", ["operating_point.rule=f1", "operating_point.images=128", "export.int8.match_share=0.9"])
    assert config_hash(said) == config_hash(plain)
    for key, value in (("operating_point.images", "64"), ("export.int8.match_share", "0.95")):
        assert config_hash(load_config("demo", [f"{key}={value}"])) != config_hash(plain)


def test_rule_of_the_operating_point_by_option_and_key() -> None:
    assert load_config("demo").operating_point.precision is None
    assert load_config("demo", options={"operating_point": "precision=0.9"}).operating_point.precision == 0.9
    both = load_config("demo", ["operating_point.images=64"], {"operating_point": "precision=.95"}).operating_point
    assert (both.precision, both.images) == (0.95, 64)
    said = r"--operating-point: .*must be f1 or precision=P .* e\.g\. precision=0\.9"
    for wrong in ("recall=0.9", "precision=1.5", "precision=", "precision=high", "0.9", ""):
        with pytest.raises(ConfigError, match=said):
            load_config("demo", options={"operating_point": wrong})


def test_iterate_is_in_no_key_or_hash_unless_it_is_chosen() -> None:
    """What was stored before the key was there is found again: these are the values that its keys were made of."""
    attack = {"eps": 0.05, "step_size": 0.02, "steps": 5, "random_start": False, "restarts": 1}
    assert AttackConfig().model_dump() == as_dict(AttackConfig(iterate="last")) == attack
    assert result_settings(load_config("demo", ["attack.iterate=last"]))["attack"] == attack
    assert config_hash(load_config("demo", ["attack.iterate=last"])) == config_hash(load_config("demo"))
    chosen = load_config("demo", ["attack.iterate=best"])
    assert as_dict(chosen)["attack"] == {**attack, "iterate": "best"}
    assert result_settings(chosen.finetune)["attack"]["iterate"] == "best", "inherited, as the other keys are"
    assert BuildConfig.model_validate(as_dict(chosen)) == chosen


def test_default_output_folder_says_what_was_built() -> None:
    assert default_out(load_config("demo")) == Path("runs/demo-structured-bn-scale-0.75-s0")
    other = load_config("demo", ["seed=3"], {"ratio": 0.0, "method": "unstructured", "scores": "random"})
    assert default_out(other) == Path("runs/demo-unstructured-random-0-s3")


def test_configuration_cannot_be_changed_after_loading() -> None:
    config = load_config("demo")
    with pytest.raises(ValueError, match="frozen"):
        config.finetune.lr = 3.0  # type: ignore[misc]


# Mistakes

WRONG_FILES = [
    ("seed: 1\nfinetune:\n  lrr: .1\n", "my.yaml:3: unknown key finetune.lrr; did you mean finetune.lr?"),
    ("rato: 0.5\n", "my.yaml:1: unknown key rato; did you mean ratio?"),
    (
        "finetune:\n  attack: {step: 3}\n",
        "my.yaml:2: unknown key finetune.attack.step; did you mean finetune.attack.steps?",
    ),
    (
        "finetune:\n  augment:\n    flip: 1\n",
        "my.yaml:3: unknown key finetune.augment.flip; known here: flip_probability, ",
    ),
    ("eval_images: 3\n", "my.yaml:1: unknown key eval_images; did you mean data.eval_images?"),
    ("nms: {eval_images: 3}\n", "my.yaml:1: unknown key nms.eval_images; did you mean data.eval_images?"),
    ("queries: 3\n", "my.yaml:1: unknown key queries; did you mean robustness.square.queries?"),
    (
        "lr: 1\n",
        "my.yaml:1: unknown key lr; did you mean pretrain.lr or score_optimization.lr or finetune.lr?",
    ),
    ("pretrain: {start: given}\n", "my.yaml:1: unknown key pretrain.start; known here: steps, "),
    ("zzz: 1\n", "my.yaml:1: unknown key zzz; known here: name, seed, "),
    ("1: 2\n", "my.yaml:1: unknown key 1; known here: "),
    (
        "modle:\n  cfg: a\nfoo: 1\n",
        "my.yaml:1: unknown key modle (1 more problem in it); did you mean model?",
    ),
    ("ratio: 1\n", "my.yaml:1: ratio should be less than 1, got 1"),
    ("ratio: -0.1\n", "my.yaml:1: ratio should be greater than or equal to 0, got -0.1"),
    ("ratio: '0.5'\n", "my.yaml:1: ratio should be a number, got '0.5'"),
    ("ratio: .nan\n", "my.yaml:1: ratio should be a finite number, got nan"),
    ("ratio:\n", "my.yaml:1: ratio should be a number, got None"),
    ("seed: true\n", "my.yaml:1: seed should be an integer, got True"),
    ("seed: 1.5\n", "my.yaml:1: seed should be an integer, got 1.5"),
    ("seed: -1\n", "my.yaml:1: seed should be greater than or equal to 0, got -1"),
    ("data:\n  greyscale: 1\n", "my.yaml:2: data.greyscale should be a boolean, got 1"),
    (
        "method: kernels\n",
        "my.yaml:1: method should be 'structured', 'unstructured', 'kernel', 'nm' or 'hybrid', got 'kernels'",
    ),
    ("method: nm\nnm: {n: 4}\n", "my.yaml:2: nm: n 4 must be smaller than m 4, or nothing is removed"),
    ("nm:\n  n: 0\n", "my.yaml:2: nm.n should be greater than or equal to 1, got 0"),
    (
        "finetune:\n  optimizer: adam\n",
        "my.yaml:2: finetune.optimizer should be 'sgd' or 'adamw', got 'adam'",
    ),
    ("attack: {eps: 2}\n", "my.yaml:1: attack.eps should be less than or equal to 1, got 2"),
    ("attack: {steps: 0}\n", "my.yaml:1: attack.steps should be greater than or equal to 1, got 0"),
    ("attack: {iterate: first}\n", "my.yaml:1: attack.iterate should be 'last' or 'best', got 'first'"),
    (
        "attack:\n  restarts: 3\n",
        "my.yaml:1: attack: restarts > 1 needs random_start: true, or all restarts are the same",
    ),
    (
        "finetune:\n  augment: {scale_min: 3}\n",
        "my.yaml:2: finetune.augment: scale_min 3 is larger than scale_max 1.4",
    ),
    (
        "evaluation: {score_threshold: 0}\n",
        "my.yaml:1: evaluation: map_score_threshold is larger than score_threshold",
    ),
    (
        "scores:\n  file: a\n",
        "my.yaml:1: scores: file is only read by name file, but name is scaled; leave it out, or change name",
    ),
    (
        "scores:\n  backend: captum\n",
        "my.yaml:1: scores: backend captum only computes name deeplift, but name is scaled; leave it out, or change",
    ),
    (
        "score_optimization: {freeze_bn: true}\n",
        "my.yaml:1: score_optimization: freeze_bn keeps batch norm frozen while scores are optimised, but with "
        "steps 0 they are not; leave it out, or set steps",
    ),
    ("finetune: 3\n", "my.yaml:1: finetune is a block with keys, got 3; its keys: steps, "),
    ("model:\n", "my.yaml:1: model is a block with keys, got None; its keys: cfg, weights, names"),
    ("model: {weights: null}\n", "my.yaml: model.weights is missing: give it, or use pretrain.from=scratch"),
    ("name: a/b\n", "my.yaml:1: name is not of the form ^[A-Za-z0-9][A-Za-z0-9._-]*$, got 'a/b'"),
    ("targets: [cpu, gpu]\n", r"my.yaml:1: targets.1 is not of the form ^(cpu|sm\d{2,3})$, got 'gpu'"),
    ("targets: []\n", "my.yaml:1: targets "),
    ("latency: {batch: [1, a]}\n", "my.yaml:1: latency.batch.1 should be an integer, got 'a'"),
    ("seed: 1\nname: a\nseed: 2\n", "my.yaml:3: seed stands here and in line 1; keep one"),
    ("a: b: c\n", "my.yaml:1: is not YAML: "),
    ("seed: 1\nname: 'a\n", "my.yaml:3: is not YAML: "),
    (
        "seed: !!python/object/apply:os.getcwd []\n",
        "my.yaml:1: is not YAML: could not determine a constructor",
    ),
    ("a: &a {b: *a}\n", "my.yaml: is not YAML: "),
    ("name: 2024-99-99\n", "my.yaml: is not YAML: "),
    ("a\x00b", "my.yaml: is not YAML: special characters are not allowed (at character 1)"),
    ("seed: 1\n---\nseed: 2\n", "my.yaml:2: is not YAML: "),
    ("[1, 2]\n", "my.yaml: is not a mapping of keys to values; write lines such as `ratio: 0.75`"),
]


@pytest.mark.parametrize(("text", "line"), WRONG_FILES)
def test_mistake_in_a_file_is_one_line_with_its_place(written: Any, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(text))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("finetune.lrr=1", "--set finetune.lrr=1: unknown key finetune.lrr; did you mean finetune.lr?"),
        ("finetune={lrr: 1}", "--set finetune={lrr: 1}: unknown key finetune.lrr; did you mean finetune.lr?"),
        ("finetune.lr=fast", "--set finetune.lr=fast: finetune.lr should be a number, got 'fast'"),
        ("finetune.lr=-1", "--set finetune.lr=-1: finetune.lr should be greater than 0, got -1"),
        ("finetune.lr=", "--set finetune.lr=: finetune.lr should be a number, got None"),
        ("finetune=3", "--set finetune=3: finetune is a block with keys, got 3"),
        ("seed.x=1", "--set seed.x=1: seed is a value, it has no keys in it"),
        ("device.x=1", "--set device.x=1: device should be 'auto', 'cpu' or 'cuda', got {'x': 1}"),
        ("finetune.lr", "--set finetune.lr: is not of the form key=value; write e.g. --set finetune.lr=0.01"),
        ("=1", "--set =1: is not of the form key=value"),
        ("finetune..lr=1", "--set finetune..lr=1: is not of the form key=value"),
        ("targets=[cpu", "--set targets=[cpu: is not YAML: "),
        ("finetune={lr: 1, lr: 2}", "--set finetune={lr: 1, lr: 2}: lr stands here and in line 1; keep one"),
    ],
)
def test_mistake_in_set_is_one_line_that_repeats_it(assignment: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("demo", [assignment])
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("ratio", 1.0, "--ratio: ratio should be less than 1, got 1.0"),
        ("ratio", -0.5, "--ratio: ratio should be greater than or equal to 0, got -0.5"),
        ("scores", "sclaed", "--scores: scores.name should be 'scaled', "),
        ("target", "sm86,tpu", "--target: targets.1 is not of the form "),
        (
            "precision",
            "fp8",
            "--precision: export.precisions.0 should be 'fp32', 'fp16' or 'int8', got 'fp8'",
        ),
    ],
)
def test_mistake_in_an_option_names_the_option(option: str, value: object, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("demo", (), {option: value})
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "dmeo",
            "no configuration called 'dmeo' ships with prunedeploy; use one of: blood-cells, demo, paper, smoke",
        ),
        ("none.yaml", "no configuration called 'none.yaml' ships with prunedeploy"),
        ("sub/none.yaml", "sub/none.yaml: cannot be read (No such file or directory); give a YAML file"),
        (Path("demo"), "demo: cannot be read (No such file or directory)"),
        ("./folder.yaml", "folder.yaml: cannot be read (Is a directory)"),
        ("./latin.yaml", "latin.yaml: is not UTF-8 text"),
    ],
)
def test_file_that_cannot_be_read_is_one_line(written: Any, source: str | Path, line: str) -> None:
    Path("folder.yaml").mkdir()
    Path("latin.yaml").write_bytes("name: Müller\n".encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        load_config(source)
    assert line in str(error.value)


def test_known_keys_are_dotted_and_use_the_names_of_the_file() -> None:
    keys = known_keys()
    assert {
        "ratio",
        "model",
        "model.cfg",
        "pretrain.from",
        "finetune.augment.hue",
        "pretrain.attack.eps",
    } <= set(keys)
    assert "pretrain.start" not in keys
    assert len(keys) == len(set(keys))


# Keys that go together


@pytest.mark.parametrize(
    ("sets", "scores", "line"),
    [
        ((), "file", "--scores: scores: name file reads scores from a file, but none is given; add scores.file=PATH"),
        (("scores.name=file",), None, "--set scores.name=file: scores: name file reads scores from a file, but none"),
        (
            ("scores.images=3", "scores.file=a.safetensors", "seed=1"),
            None,
            "--set scores.file=a.safetensors: scores: file is only read by name file, but name is bn-scale; leave",
        ),
        (("scores.file=a",), "random", "--set scores.file=a: scores: file is only read by name file, but name is ran"),
        (("scores.file=",), "file", "--scores: scores: name file reads scores from a file, but none is given"),
        (("scores.file=''",), "file", "--set scores.file='': scores.file should have at least 1 character, got ''"),
        (
            ("scores.backend=captum",),
            "snip",
            "--set scores.backend=captum: scores: backend captum only computes name deeplift, but name is snip; leave",
        ),
        (
            ("scores.deeplift_rule=reveal-cancel", "scores.backend=captum"),
            "deeplift",
            "--set scores.backend=captum: scores: backend captum has no deeplift_rule reveal-cancel; use "
            "deeplift_rule=rescale or backend=own",
        ),
        (("scores.backend=shap",), "deeplift", "--set scores.backend=shap: scores.backend should be 'own' or 'captum'"),
        (
            ("score_optimization.steps=0", "score_optimization.freeze_bn=true"),
            "random",
            "--set score_optimization.freeze_bn=true: score_optimization: freeze_bn keeps batch norm frozen while "
            "scores are optimised, but with steps 0 they are not; leave it out, or set steps",
        ),
        (
            ("score_optimization.freeze_bn=true", "score_optimization.enabled=false"),
            None,
            "--set score_optimization.freeze_bn=true: score_optimization: freeze_bn keeps batch norm frozen while "
            "scores are optimised, but with enabled false they are not; leave it out, or set enabled to true",
        ),
        (
            ("score_optimization.freeze_bn=true", "score_optimization.steps=5"),
            "deeplift",
            "--set score_optimization.freeze_bn=true: score_optimization.freeze_bn keeps batch norm frozen while "
            "scores are optimised, but those of deeplift are not; leave it out, or use score_optimization.enabled=true",
        ),
        (
            ("score_optimization.steps=0", "score_optimization.enabled=true"),
            "deeplift",
            "--set score_optimization.enabled=true: score_optimization: enabled true asks for score optimisation, but "
            "steps is 0; set steps, or leave it out",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_one_line(sets: tuple[str, ...], scores: str | None, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("demo", sets, {"scores": scores})
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_keys_that_go_together_are_taken() -> None:
    assert load_config("demo", ["scores.file=a.safetensors"], {"scores": "file"}).scores.file == "a.safetensors"
    frozen = ["score_optimization.freeze_bn=true", "score_optimization.steps=5"]
    assert load_config("demo", frozen).score_optimization.freeze_bn
    assert load_config("demo", [*frozen, "ratio=0"]).score_optimization.freeze_bn
    optimised = [*frozen, "score_optimization.enabled=true"]
    assert load_config("demo", optimised, {"scores": "deeplift"}).score_optimization.freeze_bn


# n:m patterns


def test_the_pattern_gives_the_ratio_unless_one_is_given() -> None:
    assert load_config("demo", (), {"method": "nm"}).ratio == 0.5
    assert load_config("demo", ["nm.n=1", "method=nm"]).ratio == 0.75
    assert load_config("demo", ["method=nm", "nm={n: 2, m: 16}"]).ratio == 0.875
    assert load_config("demo", ["ratio=0.6"], {"method": "nm"}).ratio == 0.6
    assert load_config("demo", ["nm.n=3"]).ratio == 0.75, "of no concern to the other methods"
    assert default_out(load_config("demo", ["method=nm"])) == Path("runs/demo-nm-scaled-0.5-s0")


@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize("m", range(2, 13))
def test_sparse_kernels_are_asked_for_if_four_channels_never_hold_three_weights(n: int, m: int) -> None:
    if n >= m:
        return
    channels = range(12 * m)
    # The worst block is one full at its start beside one full at its end.
    worst = 0
    for filled in (range(n), range(m - n, m)):
        for other in (range(n), range(m - n, m)):
            living = [c for c in channels if c % m in (filled if (c // m) % 2 else other)]
            worst = max(worst, *(sum(c // 4 == four for c in living) for four in range(3 * m)))
    config = load_config("demo", [f"nm={{n: {n}, m: {m}}}", "method=nm"])
    assert config.nm.meets_2_4 == config.sparse_weights == (worst <= 2)
    assert not load_config("demo", [f"nm={{n: {n}, m: {m}}}"]).sparse_weights


def test_granularity_names_stand_for_methods() -> None:
    assert load_config("demo", (), {"method": "filter"}).method == "structured"
    assert load_config("demo", (), {"method": "weight"}).method == "unstructured"


BY_METHOD = """
ratio: 0.5
scores: {name: scaled, images: 8}
by_method:
  structured:
    scores: {name: bn-scale}
    allocation: global
"""


def test_a_file_may_say_what_one_method_takes(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(BY_METHOD)
    structured = load_config(path)
    assert (structured.scores.name, structured.scores.images, structured.allocation) == ("bn-scale", 8, "global")
    for other in (load_config(path, ["method=unstructured"]), load_config(path, options={"method": "weight"})):
        assert (other.method, other.scores.name, other.allocation) == ("unstructured", "scaled", "uniform")
    assert load_config(path, options={"method": "filter"}).scores.name == "bn-scale"
    # What the user says comes last, whatever the method.
    assert load_config(path, ["scores.name=random"], {"method": "structured"}).scores.name == "random"
    assert load_config(path, options={"scores": "taylor"}).scores.name == "taylor"


@pytest.mark.parametrize("block", ["{structure: {ratio: 0.5}}", "{structured: 3}", "7"])
def test_what_is_no_method_is_refused_with_its_place(block: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"ratio: 0.5\nby_method: {block}\n")
    with pytest.raises(ConfigError, match=r"own\.yaml:2: .*is not a method with a block; known here: structured"):
        load_config(path)


def test_a_method_s_block_chooses_no_method(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("by_method:\n  structured:\n    method: kernel\n")
    with pytest.raises(ConfigError, match=r"own\.yaml:3: the block of structured chooses a method itself"):
        load_config(path)


def test_lines_outside_a_method_s_block_stay_their_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("finetune:\n  lr: -1\nby_method:\n  structured:\n    finetune:\n      steps: 3\n")
    with pytest.raises(ConfigError, match=r"own\.yaml:2"):
        load_config(path)
    path.write_text("finetune:\n  lr: 1.0\nby_method:\n  structured:\n    finetune:\n      steps: -3\n")
    with pytest.raises(ConfigError, match=r"own\.yaml:6"):
        load_config(path)


def test_an_error_in_a_method_s_block_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("ratio: 0.5\nby_method:\n  structured:\n    alocation: global\n")
    with pytest.raises(ConfigError, match=r"unknown key alocation.*own\.yaml:4|own\.yaml:4.*unknown key alocation"):
        load_config(path)


def test_keys_that_share_a_yaml_alias_are_set_apart() -> None:
    config = load_config("demo", ["finetune.augment.hue=0.3"])
    assert (config.finetune.augment.hue, config.pretrain.augment.hue) == (0.3, 0.02)


def test_a_share_of_the_steps_optimises_scores_and_at_ratio_0_all_of_them_fine_tune():
    shared = ("score_optimization.share=0.4", "finetune.steps=100", "method=unstructured", "scores.name=scaled")

    def steps(*more: str) -> tuple[int, int]:
        config = load_config("demo", [*shared, *more]).with_divided_steps()
        assert config.score_optimization.share is None
        return config.score_optimization.steps, config.finetune.steps

    assert steps("ratio=0.5") == (40, 60)
    assert steps("ratio=0") == (0, 100)
    assert steps("ratio=0.5", "scores.name=deeplift") == (0, 100)
    assert steps("ratio=0.5", "scores.name=deeplift", "score_optimization.enabled=true") == (40, 60)
    # Divided by hand, it is the same configuration; and one without a share is left as it is.
    divided = ("score_optimization.steps=40", "finetune.steps=60", "ratio=0.5")
    by_hand = load_config("demo", [*shared[2:], *divided])
    assert as_dict(load_config("demo", [*shared, "ratio=0.5"]).with_divided_steps()) == as_dict(by_hand)
    assert by_hand.with_divided_steps() is by_hand
    with pytest.raises(ConfigError, match=r"score_optimization\.share"):
        load_config("demo", ["score_optimization.share=1.5"])


def test_bound_on_candidates_is_a_block_that_changes_a_hash_only_where_it_is_chosen() -> None:
    base = load_config("demo")
    assert base.nms.max_candidates == MAX_CANDIDATES
    assert "nms" not in as_dict(base)
    chosen = load_config("demo", ["nms.max_candidates=128"])
    assert as_dict(chosen)["nms"] == {"max_candidates": 128}
    assert config_hash(chosen) != config_hash(base)
    for wrong in ("0", "3841", "many"):
        with pytest.raises(ConfigError, match=r"nms\.max_candidates"):
            load_config("demo", [f"nms.max_candidates={wrong}"])


def test_the_bound_is_what_tensorrt_takes() -> None:
    assert load_config("demo", [f"nms.max_candidates={LARGEST_TOP_K}"]).nms.max_candidates == LARGEST_TOP_K
