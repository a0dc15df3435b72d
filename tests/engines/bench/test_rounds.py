from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from prunedeploy_engines.bench import rounds as process_bench
from prunedeploy_engines.bench import worker as bench_worker
from prunedeploy_engines.bench.calls import OpenedModel
from prunedeploy_engines.bench.rounds import Worker, bench_models, complete_spec
from prunedeploy_engines.bundle import BundleFile, write_bundle
from prunedeploy_engines.errors import ConfigError, EngineError
from prunedeploy_engines.machine.energy import PowerSampler, RaplMeter, RaplZone
from tiny_detector import CLASS_NAMES, save_tiny_detector

SHORT = {
    "seconds": 0.02,
    "min_calls": 4,
    "warmup_s": 0.0,
    "warmup_calls": 1,
    "rounds": 2,
    "round_warm_calls": 1,
    "lock": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detector(tmp_path_factory.mktemp("model") / "model.onnx")


def test_models_are_measured_in_turns_each_in_its_process(model: Path) -> None:
    turns: list[str] = []
    spec = {"path": model, "threads": 1}
    result = bench_models({"a": spec, "b": {**spec, "batch": 4}}, **SHORT, progress=turns.append)
    assert turns == ["a", "b", "b", "a"]
    for name, batch in (("a", 1), ("b", 4)):
        row = result[name].summary()
        assert row["n"] >= 4
        assert len(result[name].latency.round_sizes) == 2
        assert min(result[name].latency.samples_ms) > 0
        assert row["batch"] == batch
        assert row["images_per_s"] == pytest.approx(1000 * batch / row["mean"])
        assert row["engine"]["runtime"] == "onnxruntime"
        assert row["engine"]["threads"] == 1
        json.dumps(row)


def test_end_to_end_runs_a_bundle_on_real_images(model: Path, tmp_path: Path) -> None:
    files = {"model.onnx": BundleFile(model, "onnx", "fp32")}
    write_bundle(tmp_path / "bundle", files, class_names=CLASS_NAMES, input={"height": 32, "width": 48})
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8))
    specs = {
        "model": {"path": model, "images": tmp_path / "images.npy"},
        "all": {"path": tmp_path / "bundle", "images": tmp_path / "images.npy", "kind": "end_to_end"},
    }
    result = bench_models(specs, **SHORT)
    assert result["all"].latency.kind == "end_to_end"
    assert result["model"].latency.kind == "host"


def test_matmul_peak_is_measured_among_the_models(model: Path) -> None:
    specs = {"model": {"path": model}, "peak": {"runtime": "matmul", "size": 64, "threads": 1}}
    result = bench_models(specs, **SHORT)
    assert result["peak"].describe["macs"] == 64**3
    assert result["peak"].latency.samples_ms


def test_any_runner_can_be_measured_by_its_factory(model: Path) -> None:
    factory = "prunedeploy_engines.runtimes.onnxruntime.runner:OnnxRuntimeRunner"
    arguments = {"path": str(model), "threads": 1}
    result = bench_models({"a": {"runtime": "other", "factory": factory, "arguments": arguments}}, **SHORT)
    assert result["a"].describe["file"] == "model.onnx"


def test_model_that_does_not_open_is_named(model: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage" * 9)
    with pytest.raises(EngineError, match=r"garbage\.onnx: bad: ONNX Runtime cannot load") as caught:
        bench_models({"good": {"path": model}, "bad": {"path": garbage}}, **SHORT)
    assert "\n" not in str(caught.value)


def test_process_that_dies_is_reported_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a crash in a driver would end it.
    (tmp_path / "crashing_factory.py").write_text("import os\ndef make():\n    os._exit(7)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"crash: the measuring process ended \(exit code 7"):
        bench_models({"crash": {"runtime": "x", "factory": "crashing_factory:make"}}, **SHORT)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"path": "a.onnx", "batches": 3}, r"unknown keys \['batches'\]"),
        ({"path": "a.onnx", "kind": "guess"}, "kind 'guess'"),
        ({}, "no path"),
    ],
)
def test_wrong_specification_is_refused_before_anything_starts(spec: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench_models({"a": spec}, **SHORT)


@pytest.mark.parametrize("images", [np.zeros((2, 32, 48, 3), dtype=np.float32), np.zeros((32, 48, 3), dtype=np.uint8)])
def test_images_of_another_kind_are_refused(model: Path, tmp_path: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(EngineError, match=r"images\.npy: a: must hold \(K, H, W, 3\) uint8"):
        bench_models({"a": {"path": model, "images": tmp_path / "images.npy"}}, **SHORT)


def test_energy_is_counted_around_the_timed_calls_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "energy_uj"
    counter.write_text("0")

    def call() -> None:  # 2 J each
        counter.write_text(str(int(counter.read_text()) + 2_000_000))

    meter = RaplMeter([RaplZone("package-0", counter, 10**12)])
    monkeypatch.setattr(bench_worker, "open_rapl", lambda: (meter, None))
    monkeypatch.setattr(bench_worker, "open_model", lambda spec: OpenedModel(lambda count: call, {"device": "cpu"}))
    measured = bench_worker.Measured(complete_spec("a", {"path": "a.onnx"}))
    assert measured.describe()["energy_source"] == "RAPL package-0"
    measured.warm_up(seconds=0.0, calls=5)
    block = measured.block(seconds=0.0, calls=3, warm_calls=4)
    assert len(block["samples_ms"]) == 3
    assert block["joules"] == pytest.approx(6.0)


def test_energy_of_an_image_is_unknown_unless_every_round_is_known() -> None:
    assert process_bench._energy_per_image([3.0, 5.0], 16) == pytest.approx(0.5)
    assert process_bench._energy_per_image([3.0, None], 16) is None
    assert process_bench._energy_per_image([None], 16) is None


@pytest.mark.parametrize(
    ("device", "counter", "source", "whole_board", "sampled"),
    [
        ("gpu", "RAPL package-0", "nvidia-smi", False, True),
        ("gpu", "RAPL package-0", None, False, False),
        ("cpu", "RAPL package-0", "nvidia-smi", False, False),
        ("cpu", None, "nvidia-smi", False, False),  # another device's power
        ("cpu", None, "INA3221 VDD_IN", True, True),
    ],
)
def test_energy_is_that_of_the_device_that_computed(
    device: str, counter: str | None, source: str | None, whole_board: bool, sampled: bool
) -> None:
    model = process_bench.Opened({}, None, {"device": device}, None, counter)  # type: ignore[arg-type]
    power = PowerSampler()
    power.source, power.whole_board = source, whole_board
    assert process_bench._uses_sampled_power(model, power) is sampled


def test_a_gpu_without_a_power_reading_has_no_energy_of_the_cpu() -> None:
    """Its row must not carry what the CPU's counter says: that is another device's energy."""
    model = process_bench.Opened({}, None, {"device": "gpu"}, None, "RAPL package-0")  # type: ignore[arg-type]
    assert process_bench._energy_source(model, PowerSampler()) is None


def test_models_that_do_not_open_are_reported_and_the_others_measured(model: Path, tmp_path: Path) -> None:
    failed: dict[str, EngineError] = {}
    specs = {"bad": {"path": tmp_path / "absent.onnx"}, "good": {"path": model, "threads": 1}}
    result = bench_models(specs, **SHORT, on_unusable=failed.__setitem__)
    assert list(result) == ["good"]
    assert "absent.onnx" in str(failed["bad"])


class SpinningProcess:
    """Stands for `time` in a process whose threads spin until a moment; in seconds."""

    def __init__(self, spins_until: float) -> None:
        self.now = 0.0
        self.spins_until = spins_until

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return min(self.now, self.spins_until)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("spins", [0.0, 0.05, 1.4])
def test_a_worker_waits_until_its_threads_are_idle(monkeypatch: pytest.MonkeyPatch, spins: float) -> None:
    clock = SpinningProcess(spins)
    monkeypatch.setattr(bench_worker, "time", clock)
    bench_worker.wait_until_idle()
    assert spins < clock.now <= spins + 0.1


def test_a_worker_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SpinningProcess(1e9)
    monkeypatch.setattr(bench_worker, "time", clock)
    bench_worker.wait_until_idle()
    assert clock.now == pytest.approx(5.0, abs=0.1)


def test_idle_worker_uses_no_cpu_after_a_block(model: Path) -> None:
    clock_ticks = Path("/proc/self/stat")
    if not clock_ticks.exists():
        pytest.skip("needs /proc to read another process's CPU time")

    def cpu_ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    with Worker("peak") as worker:
        worker.ask("open", spec=complete_spec("peak", {"runtime": "matmul", "size": 256, "threads": 2}))
        worker.ask("block", seconds=0.1, calls=5, warm_calls=0)
        before = cpu_ticks(worker._child.process.pid)
        time.sleep(0.3)
        # A spinning thread would use all of .3 s, which is 30 ticks of 1 / 100 s.
        assert (cpu_ticks(worker._child.process.pid) - before) / os.sysconf("SC_CLK_TCK") < 0.1


def test_worker_ends_with_its_parent() -> None:
    program = """
import os
from prunedeploy_engines.bench.rounds import Worker, complete_spec
worker = Worker("a")
worker.ask("open", spec=complete_spec("a", {"runtime": "matmul", "size": 8, "threads": 1}))
print(worker._child.process.pid, flush=True)
os._exit(0)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Nobody reads the worker's error stream through a pipe, so this run ends when the parent does.
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, timeout=60)
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def test_what_libraries_print_does_not_disturb_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chatty_factory.py").write_text(
        "import os\ndef make():\n    print('hello')\n    os.write(1, b'from C')\n    raise RuntimeError('told you')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match="a: RuntimeError: told you"):
        bench_models({"a": {"runtime": "x", "factory": "chatty_factory:make"}}, **SHORT)
