"""Attention: a plain loop over cells, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from prunedeploy.models.sections import Attention
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.scores.deeplift_rules import check_rules
from prunedeploy_engines.errors import DarknetFormatError, PruningError
from pruning.darknets import HEAD, conv, network

PARTS = (conv(4), "route layers=0", conv(4), "route layers=0", conv(6))


def test_attention_equals_a_plain_loop() -> None:
    """Vaswani et al. 2017, equation 1: two heads of queries and keys of two channels, and values of three."""
    layer = Attention(0, "attention", 1, (0, 1, 2), (4, 4, 6), (6, 2, 3), heads=2, scale=0.7)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 4, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    value = torch.randn(1, 6, 2, 3, generator=generator, dtype=torch.float64)
    found = layer.run([query, key, value], {}).flatten(2)[0]
    queries, keys, values = (x.flatten(2)[0].tolist() for x in (query, key, value))  # (channels, cells)
    for channel in range(6):
        head = channel // 3
        for cell in range(6):
            weights = [
                math.exp(0.7 * sum(queries[2 * head + d][cell] * keys[2 * head + d][other] for d in range(2)))
                for other in range(6)
            ]
            mean = sum(w * v for w, v in zip(weights, values[channel], strict=True)) / sum(weights)
            assert float(found[channel, cell]) == pytest.approx(mean, rel=1e-12)


def test_a_channel_leaves_all_heads_and_queries_with_keys() -> None:
    cfg = network(conv(8), *PARTS, "attention from=1,3,5 heads=2 scale=0.7", conv(8), *HEAD)
    groups = {group.layers: group for group in coupling_groups(cfg)}
    both, values = groups[1, 3], groups[5,]
    assert [(member.layer, member.filters.tolist()) for member in both.members] == [
        (1, [[0, 2], [1, 3]]),
        (3, [[0, 2], [1, 3]]),
    ]
    assert [member.filters.tolist() for member in values.members] == [[[0, 3], [1, 4], [2, 5]]]
    assert both.prunable
    assert values.prunable


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("attention from=1,3", "name three layers: queries and keys of one shape"),
        ("attention from=1,5,3", "queries and keys of one shape"),
        ("attention from=1,3,5 heads=4", r"heads=4 does not divide channels \(4, 4, 6\)"),
    ],
)
def test_what_does_not_fit_is_refused(section: str, says: str) -> None:
    with pytest.raises(DarknetFormatError, match=says):
        network(conv(8), *PARTS, section, *HEAD)


def test_deeplift_refuses_it_by_name() -> None:
    cfg = network(conv(8), *PARTS, "attention from=1,3,5 heads=2", *HEAD)
    with pytest.raises(PruningError, match=r"no rule for \[attention\]"):
        check_rules(cfg)
