"""Two real processes over gloo train what one process trains."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prunedeploy.models import yolo_loss
from prunedeploy.scores import scaled_scores
from prunedeploy.training.distributed import average_gradients, is_main_process, shard, world
from training.small import batch_of, small_model
from training.two_processes import IMAGES, run

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two processes computed, started as torchrun starts them."""
    out = tmp_path_factory.mktemp("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [REPOSITORY / part for part in ("", "export", "engines", "tests")]
    started = []
    for rank in range(2):
        environment = {
            **os.environ, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }  # fmt: skip
        command = [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(out)]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        outputs = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    return [load_file(out / f"{rank}.safetensors") for rank in range(2)]


def part(values: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    found = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
    assert found
    return found


def test_each_process_gets_its_images_with_their_boxes(processes: list[dict[str, Tensor]]) -> None:
    whole = batch_of(0, IMAGES)
    for rank, values in enumerate(processes):
        share = part(values, "share")
        own = list(range(rank, IMAGES, 2))
        assert torch.equal(share["images"], whole.images[own])
        assert share["ids"].tolist() == [whole.image_ids[index] for index in own]
        assert len(share["targets"]) > 0
        expected = [(own.index(int(t[0])), *t[1:]) for t in whole.targets.tolist() if int(t[0]) in own]
        assert [tuple(row) for row in share["targets"].tolist()] == expected


def test_shares_are_put_together_in_the_order_of_the_batch(processes: list[dict[str, Tensor]]) -> None:
    for values in processes:
        assert torch.equal(values["gathered"], batch_of(0, IMAGES).images)


def test_two_processes_train_what_one_trains_on_the_whole_batch(
    processes: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    alone = run(tmp_path, training_mode=False).state_dict()
    start = small_model().state_dict()
    moved = 0
    for values in processes:
        for key, value in part(values, "eval").items():
            torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-5, msg=key)
            moved += not torch.equal(value, start[key])
    assert moved > 10, "training must have changed something"


@pytest.mark.parametrize("name", ["eval", "train", "one", "resumed", "free", "freed", "scored", "rescored"])
def test_both_processes_end_with_the_same_network(processes: list[dict[str, Tensor]], name: str) -> None:
    first, second = (part(values, name) for values in processes)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_gradients_and_running_statistics_are_averages_over_the_shares(
    processes: list[dict[str, Tensor]],
) -> None:
    # In training mode a share is normalised by its own statistics, so the whole batch is no reference: each
    # share is computed by itself here, and the two are averaged by hand.
    whole, gradients, statistics = batch_of(0, IMAGES), [], []
    for rank in range(2):
        model = small_model().train()
        targets = whole.targets[whole.targets[:, 0] % 2 == rank].clone()
        targets[:, 0] = (targets[:, 0] - rank) / 2
        yolo_loss(model(whole.images[rank::2]), targets, model.cfg).total.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        statistics.append(dict(model.named_buffers()))
    start = small_model().state_dict()
    for values in processes:
        trained = part(values, "one")
        for name in gradients[0]:
            step = 1e-3 * (gradients[0][name] + gradients[1][name]) / 2
            assert float(step.abs().max()) > 1e-6
            atol = 1e-6 + 1e-3 * float(step.abs().max())
            torch.testing.assert_close(trained[name], start[name] - step, rtol=1e-5, atol=atol, msg=name)
        for name, first in statistics[0].items():
            assert not torch.equal(first, statistics[1][name])
            torch.testing.assert_close(trained[name], (first + statistics[1][name]) / 2)


@pytest.mark.parametrize(("name", "again"), [("train", "resumed"), ("free", "freed"), ("scored", "rescored")])
def test_a_stopped_distributed_run_goes_on_bit_for_bit(
    processes: list[dict[str, Tensor]], name: str, again: str
) -> None:
    for values in processes:
        resumed = part(values, again)
        for key, value in part(values, name).items():
            assert torch.equal(value, resumed[key]), key


def test_score_optimisation_moves_scores_and_statistics_in_both_processes(
    processes: list[dict[str, Tensor]],
) -> None:
    start = small_model().state_dict()
    optimised = part(processes[0], "scored")
    assert not torch.equal(optimised["scores.0"], scaled_scores(small_model())[0])
    for name in ("mean", "variance", "scale", "bias"):
        assert not torch.equal(optimised[f"normalisation.0.{name}"], start[f"convs.0.{name}"]), name


def test_a_batch_that_does_not_split_evenly_is_refused(processes: list[dict[str, Tensor]]) -> None:
    assert [values["refused"].item() for values in processes] == [1.0, 1.0]


def test_without_a_launcher_there_is_one_process_and_nothing_changes() -> None:
    assert world() == (0, 1)
    assert is_main_process()
    batch = batch_of(0)
    assert shard(batch) is batch
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]
