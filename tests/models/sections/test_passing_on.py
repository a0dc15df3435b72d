"""Sections that mean something to Darknet's training only: what follows reads what they read."""

from __future__ import annotations

import pytest
import torch

from prunedeploy.models.cfg_notes import cfg_notes
from prunedeploy.models.sections import SECTIONS
from prunedeploy.pruning.coupling import coupling_groups
from pruning.darknets import HEAD, conv, network, random_network

SECTION_TEXTS = [
    "dropout probability=.5 dropblock=1 dropblock_size_rel=0.1 dropblock_size_abs=7",
    "cost type=sse scale=2 ratio=0.1",
    "contrastive classes=1 temperature=1.0 yolo_layer=-2 cls_normalizer=1.0 max_delta=10 contrastive_neg_max=3",
]


@pytest.mark.parametrize("text", SECTION_TEXTS)
@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_that_without_it(text: str, training: bool) -> None:
    images = torch.rand(2, 3, 16, 16)
    without, within = (
        random_network(network(conv(8, 3), *section, conv(8, 3), *HEAD)).train(training) for section in ((), (text,))
    )
    (expected,), (found,) = without(images), within(images)
    assert torch.equal(expected, found)
    assert [group.channels for group in coupling_groups(within.cfg)] == [
        group.channels for group in coupling_groups(without.cfg)
    ]


@pytest.mark.parametrize("text", SECTION_TEXTS)
def test_all_of_its_options_are_counted_as_training_s(text: str) -> None:
    kind, *options = text.split()
    cfg = network(conv(8, 3), text, *HEAD)
    ignored = [one.option for one in cfg.ignored_options if one.section == kind]
    assert ignored == [option.partition("=")[0] for option in options]
    assert set(ignored) == SECTIONS[kind].training_only
    assert cfg_notes(cfg)[0].endswith(f"only Darknet itself reads them: {', '.join(ignored)} ({len(ignored)} keys)")
