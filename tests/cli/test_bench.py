"""`bench` as a user calls it; tiny models, and no time is judged."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from bench_rows import bench_document, bench_row
from effort import slow_after
from prunedeploy.config import Method
from prunedeploy_engines.bench.flood import CASES
from prunedeploy_engines.bundle import BundleFile, load_bundle, write_bundle
from prunedeploy_engines.doctor.doctor import diagnose
from prunedeploy_engines.files import file_sha256
from tiny_detector import CLASS_NAMES, save_tiny_detector

NOT_ON_THE_DEVICE = ("torch", "onnx", "captum", "pycocotools", "scipy", "safetensors", "matplotlib")
QUICK = ("--seconds", "0.02", "--min-calls", "10", "--warmup", "0", "--threads", "1")
SERVER = ("--scenario", "server", "--seconds", "0.05", "--min-calls", "100", "--warmup", "0", "--threads", "1")


OWN_LOCK = """
from prunedeploy_engines import locks
locks.shared_lock_file = lambda: locks.Path("measuring.lock").absolute()
"""


def build_folder(folder: Path, bundle: Path, darknet: Path | None = None) -> Path:
    """What a build of the bundle leaves, as far as `bench` looks."""
    folder.mkdir()
    shutil.copytree(bundle, folder / "bundle")
    (folder / "build.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps({"models": [{"name": "pruned", "macs": 1_000_000}]}))
    if darknet is not None:
        shutil.copy(darknet, folder / "model.cfg")
        shutil.copy(darknet.with_suffix(".weights"), folder / "model.weights")
    return folder


@pytest.fixture
def no_gpu() -> None:
    """Skip where TensorRT may run."""
    if not any(finding.name == "cuda driver" and finding.status == "missing" for finding in diagnose()):
        pytest.skip("TensorRT may run here")


@pytest.fixture
def precise(tmp_path: Path) -> Path:
    """A bundle with fp32 and two int8 files, accuracies, and zeros that were not cut out."""
    model = save_tiny_detector(tmp_path / "source.onnx")
    write_bundle(
        tmp_path / "precise",
        {
            "model.onnx": BundleFile(model, "onnx", "fp32"),
            "model.int8.onnx": BundleFile(model, "onnx", "int8", "cpu"),
            "model.int8.gpu.onnx": BundleFile(model, "onnx", "int8", "gpu"),
        },
        class_names=CLASS_NAMES,
        input={"height": 32, "width": 48},
        pruning={"method": "unstructured", "ratio_requested": 0.75, "ratio_achieved": 0.75},
        metrics={
            "macs": 1_000_000,
            "weights": 2_000,
            "zero_weights": 1_500,
            "map_clean": 0.6,
            "map_pgd": 0.41,
            "engines": [
                {"runtime": "onnxruntime", "precision": "int8", "file": "model.int8.onnx", "map_clean": 0.59,
                 "map_pgd_transfer": 0.405},
            ],
        },
    )  # fmt: skip
    return tmp_path / "precise"


@pytest.fixture
def pruned(tmp_path: Path) -> Callable[..., Path]:
    """``pruned(method, zero_weights, filters_before, filters)``: what a build leaves; None leaves a count out."""

    def make(
        method: str, zero_weights: int | None, filters_before: int | None = None, filters: int | None = None
    ) -> Path:
        model = BundleFile(save_tiny_detector(tmp_path / "source.onnx"), "onnx", "fp32")
        counted = {"weights": 1_000, "zero_weights": zero_weights, "filters": filters}
        record = {"method": method, "ratio_requested": 0.6, "ratio_achieved": 0.6, "filters_before": filters_before}
        write_bundle(
            tmp_path / f"bundle-{method}",
            {"model.onnx": model},
            class_names=CLASS_NAMES,
            input={"height": 32, "width": 48},
            pruning={name: value for name, value in record.items() if value is not None},
            metrics={"macs": 1_000_000, **{name: value for name, value in counted.items() if value is not None}},
        )
        return build_folder(tmp_path / f"of-{method}", tmp_path / f"bundle-{method}")

    return make


def document_of(done: Any) -> dict[str, Any]:
    """The JSON of a run that succeeded."""
    assert done.exit_code == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(done: Any) -> str:
    """The one line of a run that the user can mend."""
    assert (done.exit_code, done.stdout) == (2, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("measuring")]
    assert len(lines) == 1
    return str(lines[0])


def test_bundles_builds_and_onnx_files_are_measured_without_torch_and_onnx(
    run_process: Any, bundle: Path, tmp_path: Path
) -> None:
    folder = build_folder(tmp_path / "build", bundle)
    out = tmp_path / "measured"
    done = run_process(
        "bench", bundle, folder, tmp_path / "source.onnx", "--batch", "2", *QUICK, "--json", "--out", out,
        blocked=NOT_ON_THE_DEVICE, before=OWN_LOCK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = document["rows"]
    assert [(row["runtime"], row["batch"]) for row in rows] == [("onnxruntime", 2)] * 3
    assert [Path(row["path"]).name for row in rows] == ["bundle", "build", "source.onnx"]
    assert all(row["latency_ms"]["n"] >= 10 for row in rows)
    assert all(len(row["round_sizes"]) == 10 for row in rows)
    assert all(row["engine"]["threads"] == 1 for row in rows)
    assert [peak["matmul_size"] for peak in document["peaks"]] == [1024]
    assert document["machine"]["cpu"]["name"]
    for row in rows[:2]:  # a batch of 2 is 2 x 1 M multiply-accumulates, each two operations
        assert row["gflops"] == pytest.approx(2 * 2_000_000 / row["latency_ms"]["p50"] / 1e6)
        assert row["fraction_of_peak"] == pytest.approx(row["gflops"] / document["peak_matmul_gflops"])
    assert (rows[2]["macs"], rows[2]["gflops"], rows[2]["fraction_of_peak"]) == (None, None, None)
    assert json.loads((out / "bench.json").read_text()) == document
    assert sorted(path.name for path in out.iterdir()) == ["bench.html", "bench.json", "latency.svg"]


def test_a_row_says_what_was_measured_and_keeps_every_sample(run: Any, bundle: Path) -> None:
    document = document_of(run("bench", bundle, *QUICK, "--seed", "7", "--json"))
    assert document["schema_version"] == 1
    assert document["scenario"]["name"] == "single-stream"
    assert document["settings"]["min_calls"] == 10
    assert {"before", "after"} == set(document["device_state"])
    (row,) = document["rows"]
    assert (row["precision"], row["threads"], row["kind"], row["batch"]) == ("fp32", 1, "host", 1)
    assert row["sha256"] == file_sha256(bundle / "model.onnx")
    assert row["images"] == {"source": "random pixels", "seed": 7, "count": 8}
    assert len(row["samples_ms"]) == sum(row["round_sizes"]) == row["latency_ms"]["n"]
    assert len(row["round_sizes"]) == document["settings"]["rounds"]
    assert row["figure"] == {"name": "90th percentile of the latency, ms", "value": row["latency_ms"]["p90"]}
    assert {"computes_in", "energy_j_per_image", "layers", "map_clean", "map_pgd", "device"} <= set(row)


def test_every_combination_is_a_row(run: Any, bundle: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino")
    options = "--runtime onnxruntime,openvino --threads 1,2 --kind compute,end-to-end".split()
    document = document_of(run("bench", bundle, *QUICK, *options, "--json"))
    combinations = {(row["runtime"], row["threads"], row["kind"]) for row in document["rows"]}
    assert len(combinations) == len(document["rows"]) == 8
    assert {row["latency_ms"]["kind"] for row in document["rows"]} == {"compute", "end_to_end"}
    peaks = {(peak["runtime"], peak["threads"]): peak["gflops"] for peak in document["peaks"]}
    assert set(peaks) == {(runtime, threads) for runtime in ("onnxruntime", "openvino") for threads in (1, 2)}
    for row in document["rows"]:
        assert row["peak_gflops"] == peaks[row["runtime"], row["threads"]]


def test_precisions_are_rows_with_their_accuracies_and_missing_ones_have_a_reason(run: Any, precise: Path) -> None:
    document = document_of(run("bench", precise, *QUICK, "--precision", "fp32,fp16,int8", "--json"))
    fp32, fp16, int8 = document["rows"]
    assert (fp32["map_clean"], fp32["map_pgd"]) == (0.6, 0.41)
    assert (int8["file"], int8["map_clean"], int8["map_pgd"]) == ("model.int8.onnx", 0.59, 0.405)
    assert fp16["latency_ms"] is None
    assert "no onnx of precision fp16" in fp16["reason"]
    assert {(peak["runtime"], peak["precision"]) for peak in document["peaks"]} == {
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    }
    assert fp32["notes"] == ["75 % of its weights are zeros, from which dense kernels gain nothing"]


ZEROS = {"structured": 0, "unstructured": 600, "kernel": 600, "nm": 500, "hybrid": 300}


@pytest.mark.parametrize(
    "method",
    [one if one in {"nm", "hybrid"} else pytest.param(one, marks=pytest.mark.slow) for one in get_args(Method)],
)
def test_a_build_of_every_method_is_measured_and_says_what_zeros_it_has(
    run: Any, pruned: Callable[..., Path], method: str
) -> None:
    folder = pruned(method, ZEROS[method])
    (row,) = document_of(run("bench", folder, *QUICK, "--json"))["rows"]
    assert (row["model"], row["macs"]) == (folder.name, 1_000_000)
    assert row["latency_ms"]["n"] >= 10
    share = f"{ZEROS[method] // 10} % of its weights are zeros, from which dense kernels gain nothing"
    assert row["notes"] == ([share] if ZEROS[method] else [])


def test_zeros_are_those_that_the_build_counted_whatever_its_method(run: Any, pruned: Callable[..., Path]) -> None:
    folders = [pruned("hybrid", 0), pruned("structured", 250), pruned("unstructured", None), pruned("nm", 4)]
    rows = document_of(run("bench", *folders, *QUICK, "--json"))["rows"]
    assert [bool(row["notes"]) for row in rows] == [False, True, False, False]


@pytest.mark.parametrize(
    ("method", "before", "after", "said"),
    [
        ("unstructured", 190, 178, "; 12 of 190 filters are gone"),
        ("hybrid", 190, 95, "; 95 of 190 filters are gone"),
        ("nm", 190, 190, "; all of its 190 filters are left"),
        ("kernel", None, 178, ""),
        ("kernel", 190, None, ""),
    ],
)
def test_filters_that_are_gone_are_those_that_the_build_counted(
    run: Any, pruned: Callable[..., Path], method: str, before: int | None, after: int | None, said: str
) -> None:
    document = document_of(run("bench", pruned(method, 600, before, after), *QUICK, "--json"))
    nothing = "60 % of its weights are zeros, from which dense kernels gain nothing"
    assert document["rows"][0]["notes"] == [nothing + said]


def test_terminal_names_the_models_of_a_note(run: Any, pruned: Callable[..., Path]) -> None:
    folders = [pruned("nm", 500), pruned("hybrid", 300), pruned("kernel", 300), pruned("structured", 0)]
    done = run("bench", *folders, *QUICK, "--batch", "1,2")
    assert done.exit_code == 0, done.stderr
    nothing = "of its weights are zeros, from which dense kernels gain nothing"
    assert [line for line in done.stdout.splitlines() if line.startswith("o ")] == [
        f"o of-nm: 50 % {nothing}",
        f"o of-hybrid, of-kernel: 30 % {nothing}",
    ]


def test_terminal_shows_only_what_differs_and_the_note_of_sparse_rows(run: Any, precise: Path) -> None:
    done = run("bench", precise, *QUICK, "--precision", "fp32,int8")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "precision" in lines[0]
    assert "batch" not in lines[0]
    assert "robust mAP" in lines[0]
    assert "0.405" in lines[3]
    assert any(line.startswith("all rows: ") and "batch 1, 1 thread, host" in line for line in lines)
    assert f"o {precise.name}: 75 % of its weights are zeros, from which dense kernels gain nothing" in lines


def test_gpu_providers_take_the_file_for_gpus_and_are_never_replaced(run: Any, precise: Path, no_gpu: None) -> None:
    done = run("bench", precise, *QUICK, "--precision", "int8", "--providers", "cpu,cuda", "--json")
    cpu, cuda = document_of(done)["rows"]
    assert (cpu["file"], cuda["file"]) == ("model.int8.onnx", "model.int8.gpu.onnx")
    assert cuda["latency_ms"] is None
    assert "CUDAExecutionProvider" in cuda["reason"]
    assert "CUDAExecutionProvider" in refused(run("bench", precise, *QUICK, "--providers", "cuda"))


def test_real_images_are_letterboxed_and_named(run: Any, bundle: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, size in enumerate(((64, 48), (30, 90))):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.jpg")
    document = document_of(run("bench", bundle, *QUICK, "--images", photos, "--kind", "host,end-to-end", "--json"))
    assert [row["images"]["source"] for row in document["rows"]] == ["images"] * 2
    assert document["rows"][0]["images"] == {"source": "images", "path": str(photos), "count": 2}
    (tmp_path / "none").mkdir()
    assert "none: this folder has no images" in refused(run("bench", bundle, *QUICK, "--images", tmp_path / "none"))


def test_a_file_of_a_bundle_has_its_metrics_whatever_precision_is_asked_for(run: Any, precise: Path) -> None:
    document = document_of(run("bench", precise / "model.onnx", *QUICK, "--precision", "fp16,int8", "--json"))
    (row,) = document["rows"]
    assert (row["precision"], row["macs"], row["map_pgd"]) == ("fp32", 1_000_000, 0.41)


def test_the_row_that_cannot_run_has_its_reason(run: Any, bundle: Path, no_gpu: None) -> None:
    done = run("bench", bundle, "--runtime", "onnxruntime,tensorrt", *QUICK)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "median ms" in lines[0]
    assert "onnxruntime" in lines[2]
    assert lines[2].endswith(" %")
    assert "tensorrt" in lines[3]
    assert lines[3].split()[-1] == "-"
    assert any(line.startswith("peak, GFLOP/s on a MatMul in the same run") for line in lines)
    assert lines[-1].startswith("not measured: TensorRT cannot run here: ")


def test_nothing_that_runs_here_is_an_error(run: Any, bundle: Path, no_gpu: None) -> None:
    assert "TensorRT cannot run here" in refused(run("bench", bundle, "--runtime", "tensorrt", *QUICK))


def test_torch_needs_a_network(run: Any, bundle: Path) -> None:
    assert "has no PyTorch network" in refused(run("bench", bundle, "--runtime", "torch", *QUICK))


def test_torch_is_measured_from_a_build_folder_in_fp32_only(
    run: Any, bundle: Path, darknet: Path, tmp_path: Path
) -> None:
    folder = build_folder(tmp_path / "build", bundle, darknet)
    done = run("bench", folder, "--runtime", "torch", "--precision", "fp32,int8", "--profile", *QUICK, "--json")
    document = document_of(done)
    assert document["rows"][0]["engine"]["runtime"] == "torch"
    assert document["rows"][0]["fraction_of_peak"] is None  # its own MatMul is no yardstick
    assert "PyTorch runs the fp32 network only" in document["rows"][1]["reason"]
    assert "PyTorch rows have no profile of single layers" in document["notes"]
    assert document["peak_matmul_gflops"] is None


def test_flood_puts_the_worst_cases_and_attacked_images_beside_the_clean_row(
    run: Any, bundle: Path, darknet: Path, tmp_path: Path
) -> None:
    folder = build_folder(tmp_path / "build", bundle, darknet)
    done = run("bench", folder, "--flood", *QUICK, "--json")
    rows = document_of(done)["rows"]
    assert [row["flood"] for row in rows] == [None, *CASES, "images"]
    assert {row["kind"] for row in rows} == {"end_to_end"}
    clean = rows[0]["latency_ms"]["p99"]
    for row in rows[1:]:
        assert row["flood_ratio"] == pytest.approx(row["latency_ms"]["p99"] / clean)
        assert row.get("map_clean") is None
    assert rows[-1]["images"]["source"] == "images"

    photos = tmp_path / "flooded.npy"
    np.save(photos, np.full((2, 32, 48, 3), 255, np.uint8))
    given = document_of(run("bench", bundle, "--flood", "--flood-images", photos, *QUICK, "--json"))["rows"]
    assert given[-1]["images"] == {"source": "images", "path": str(photos), "count": 2}
    shown = run("bench", bundle, "--flood", *QUICK)
    assert shown.exit_code == 0, shown.stderr
    assert "p99 / clean" in shown.stdout
    for word in ("clean", *CASES):
        assert word in shown.stdout


def test_profile_shows_the_layers_of_each_row(run: Any, bundle: Path) -> None:
    done = run("bench", bundle, *QUICK, "--batch", "1,2", "--profile")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("computes in") == 2
    assert "AveragePool" in done.stdout
    assert f"{bundle.parent.name}/bundle, batch 2" in done.stdout


def test_a_broken_file_does_not_keep_the_others_from_being_measured(run: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    rows = document_of(run("bench", bundle, tmp_path / "bad.onnx", *QUICK, "--json"))["rows"]
    assert rows[0]["latency_ms"] is not None
    assert rows[1]["latency_ms"] is None
    assert "bad.onnx" in rows[1]["reason"]
    assert "bad.onnx" in refused(run("bench", tmp_path / "bad.onnx", *QUICK))


def test_a_damaged_bundle_is_refused_before_anything_is_measured(run: Any, bundle: Path, precise: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[100] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    assert "model.onnx was changed" in refused(run("bench", precise, bundle, *QUICK))


def test_a_garbage_plan_is_one_line(run: Any, tmp_path: Path, no_gpu: None) -> None:
    (tmp_path / "x.plan").write_bytes(b"garbage")
    line = refused(run("bench", tmp_path / "x.plan", *QUICK))
    assert "TensorRT cannot run here" in line or "x.plan" in line


def test_offline_names_the_best_batch(run: Any, bundle: Path) -> None:
    document = document_of(run("bench", bundle, *QUICK, "--scenario", "offline", "--batch", "1,4", "--json"))
    rows = document["rows"]
    best = max(rows, key=lambda row: row["latency_ms"]["images_per_s"])
    assert [row["best_batch"] for row in rows] == [row is best for row in rows]
    assert best["figure"] == {"name": "images per second", "value": best["latency_ms"]["images_per_s"]}


def test_server_finds_a_rate_and_shows_its_trials(run: Any, bundle: Path, tmp_path: Path) -> None:
    done = run("bench", bundle, *SERVER, "--latency-bound", "200", "--batch", "2", "--json", "--out", tmp_path / "out")
    document = document_of(done)
    for row in document["rows"]:
        server = row["server"]
        assert server["queries_per_s"] == row["figure"]["value"]
        assert server["latency_bound_ms"] == 200
        assert server["trials"][-1]["holds"]
        assert server["trials"][-1]["rate"] == server["queries_per_s"]
        assert len(row["samples_ms"]) == server["trials"][-1]["queries"] >= 100
    assert (tmp_path / "out" / "latency.svg").is_file()


def test_server_bound_that_cannot_be_held_says_so(run: Any, bundle: Path) -> None:
    line = refused(run("bench", bundle, *SERVER, "--latency-bound", "0.0001"))
    assert "0.0001 ms cannot be held at any rate" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--runtime", "tflite"),
            "--runtime 'tflite' is not known; choose from onnxruntime, openvino, torch, tensorrt",
        ),
        (("--precision", "int4"), "--precision 'int4' is not known"),
        (("--providers", "rocm"), "--providers 'rocm' is not known; choose from cpu, cuda, tensorrt"),
        (("--kind", "all"), "--kind 'all' is not known; choose from compute, host, end-to-end"),
        (("--batch", "0"), "--batch '0' is not a whole number of at least 1"),
        (("--threads", "two"), "--threads 'two' is not a whole number"),
        (("--batch", ","), "--batch is empty"),
        (("--scenario", "server"), "--scenario server needs --latency-bound"),
        (("--latency-bound", "5"), "--latency-bound belongs to --scenario server"),
        (("--scenario", "server", "--latency-bound", "5", "--min-calls", "9"), "--min-calls must be at least 100"),
        (("--compare", "--merge"), "exclude each other"),
        (("--images", "absent"), "absent: there is no such file or folder of images"),
        (("--flood", "--kind", "host"), "--flood measures from image to detections: leave --kind out"),
        (("--flood", "--scenario", "offline"), "--flood is for --scenario single-stream"),
        (("--flood-images", "photos"), "--flood-images belongs to --flood"),
        (("--flood", "--flood-images", "absent"), "absent: there is no such file or folder of images"),
    ],
)
def test_a_wrong_option_is_one_line(run: Any, bundle: Path, options: tuple[str, ...], said: str) -> None:
    assert said in refused(run("bench", bundle, *options))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two earlier runs, the second on another device: int8 slower, fp32 the same."""
    for name, device, int8 in (("a", "Some CPU", 5.0), ("b", "Other CPU", 6.0)):
        rows = [
            bench_row(10.0, seed=ord(name), device=device, map_pgd=0.41),
            bench_row(int8, seed=ord(name) + 9, device=device, map_pgd=0.4, precision="int8", computes_in=None),
        ]
        document = bench_document(rows)
        document["machine"]["cpu"] = {"name": device, "usable_cpus": 2}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path / "a.json", tmp_path / "b.json"


def test_compare_says_which_difference_is_real(run: Any, files: tuple[Path, Path]) -> None:
    done = run("bench", "--compare", *files)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].endswith("no measurable difference")
    assert lines[3].startswith("pruned, int8")
    assert lines[3].endswith("slower")
    assert "the machines differ: CPU Some CPU in A, Other CPU in B" in lines
    document = document_of(run("bench", "--compare", *files, "--json"))
    assert [row["verdict"] for row in document["rows"]] == ["no measurable difference", "slower"]
    assert document["rows"][1]["ratio"] == pytest.approx(1.2, rel=0.02)


def test_compare_with_itself_finds_nothing(run: Any, files: tuple[Path, Path]) -> None:
    document = document_of(run("bench", "--compare", files[0], files[0], "--json"))
    assert {row["verdict"] for row in document["rows"]} == {"no measurable difference"}
    assert {row["ratio"] for row in document["rows"]} == {1.0}


def test_merge_puts_devices_into_one_table_and_picture(run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("bench", "--merge", *files, "--out", tmp_path / "merged")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "device" in lines[0]
    assert sum("Other CPU" in line for line in lines) == 2
    folder = tmp_path / "merged"
    assert sorted(path.name for path in folder.iterdir()) == [
        "bench.html",
        "bench.json",
        "latency.svg",
        "robust-map.svg",
    ]
    assert "Other CPU" in (folder / "robust-map.svg").read_text()
    merged = json.loads((folder / "bench.json").read_text())
    assert set(merged["machines"]) == {"a", "b"}
    again = document_of(run("bench", "--merge", folder, files[0], "--json"))
    assert len(again["rows"]) == 6


@pytest.mark.parametrize("option", ["--compare", "--merge"])
def test_what_is_no_benchmark_is_refused(run: Any, files: tuple[Path, Path], tmp_path: Path, option: str) -> None:
    (tmp_path / "broken.json").write_text('{"rows": [')
    (tmp_path / "other.json").write_text('{"name": "package"}')
    assert "broken.json: is not JSON" in refused(run("bench", option, files[0], tmp_path / "broken.json"))
    assert "other.json: is not a file of `prunedeploy bench`" in refused(
        run("bench", option, files[0], tmp_path / "other.json")
    )
    assert "there is no such file" in refused(run("bench", option, files[0], tmp_path / "absent.json"))
    assert "two files" in refused(run("bench", option, files[0]))


def test_out_that_cannot_be_written_is_told(run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused(run("bench", "--merge", *files, "--out", tmp_path / "file"))


def test_help_names_every_choice(run: Any) -> None:
    text = " ".join(run("bench", "--help").stdout.split())
    for word in ("openvino", "int8", "end-to-end", "cuda", "server", "--compare", "--merge", "--profile"):
        assert word in text


def test_the_bundle_is_left_as_it_was(run: Any, bundle: Path) -> None:
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    document_of(run("bench", bundle, *QUICK, "--profile", "--json"))
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    load_bundle(bundle)


@pytest.mark.parametrize(
    "options", [(), ("--runtime", "openvino"), ("--runtime", "tensorrt"), ("--kind", "end-to-end")]
)
def test_a_darknet_network_is_measured_with_torch_or_refused_in_one_line(
    run: Any, darknet: Path, options: tuple[str, ...]
) -> None:
    line = refused(run("bench", darknet, *options, *QUICK))
    assert line.startswith("prunedeploy: error:")
    assert "bug" not in line
    if "tensorrt" not in options:
        assert "tiny.cfg: is a Darknet network, which" in line
        assert "--runtime torch" in line


def test_a_darknet_network_beside_a_bundle_is_an_empty_row_with_its_reason(
    run: Any, darknet: Path, bundle: Path
) -> None:
    rows = document_of(run("bench", darknet, bundle, *QUICK, "--json"))["rows"]
    assert "is a Darknet network, which ONNX Runtime does not run" in rows[0]["reason"]
    assert (rows[0]["latency_ms"], rows[1]["reason"]) == (None, None)


def test_a_darknet_network_is_measured_with_torch(run: Any, darknet: Path) -> None:
    (row,) = document_of(run("bench", darknet, "--runtime", "torch", *QUICK, "--json"))["rows"]
    assert row["runtime"] == "torch"
    assert row["latency_ms"]["p50"] > 0


@pytest.mark.parametrize("threads", slow_after(1, "3,16", "16"))
def test_the_peak_is_taken_with_no_more_threads_than_cpus(
    run: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    """More threads than CPUs slow the MatMul, and rows seemed to reach several times the peak."""
    monkeypatch.setattr("prunedeploy_engines.bench.rows.usable_cpus", lambda: 2)
    document = document_of(run("bench", bundle, *QUICK[:-1], threads, "--json"))
    assert [peak["threads"] for peak in document["peaks"]] == [2]
    for row, count in zip(document["rows"], threads.split(","), strict=True):
        assert row["threads"] == int(count)
        assert row["notes"] == [f"{count} threads share 2 CPUs"]
        assert row["peak_gflops"] == document["peaks"][0]["gflops"]
