"""The three networks of a build and the chain of stages that makes them: the same for a build and for a trial."""

from __future__ import annotations

from dataclasses import dataclass

from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.stages.cut import optimise_stage, prune_stage
from prunedeploy.pipeline.stages.dead_channels import dead_channel_stage
from prunedeploy.pipeline.stages.score import score_stage
from prunedeploy.pipeline.stages.train import finetune_stage, original_stage, pretrain_stage


@dataclass(frozen=True)
class Networks:
    """The networks at one pruning ratio.

    Attributes:
        original: As given.
        robust: After adversarial pre-training.
        prune: The cut, before fine-tuning.
        pruned: The network that is deployed.
    """

    original: StageResult
    robust: StageResult
    prune: StageResult
    pruned: StageResult

    @property
    def rows(self) -> dict[str, StageResult]:
        """The three of every result, by name."""
        return {"original": self.original, "robust": self.robust, "pruned": self.pruned}


def unpruned_networks(context: BuildContext) -> tuple[StageResult, StageResult]:
    """Step 1: the original and the robust network, which do not depend on the ratio."""
    original = original_stage(context)
    return original, pretrain_stage(context, original)


def all_networks(context: BuildContext) -> Networks:
    """Steps 1 to 5 at the configuration's ratio; what the store holds is not computed again.

    Raises:
        PruningError: The ratio cannot be reached.
    """
    return pruned_networks(context, *unpruned_networks(context))


def pruned_networks(context: BuildContext, original: StageResult, robust: StageResult) -> Networks:
    """Steps 2 to 5 on the given networks of step 1.

    Raises:
        PruningError: The ratio cannot be reached.
    """
    scores = optimise_stage(context, robust, score_stage(context, robust))
    cut = prune_stage(context, robust, scores)
    pruned = dead_channel_stage(context, finetune_stage(context, robust, cut))
    return Networks(original, robust, cut, pruned)
