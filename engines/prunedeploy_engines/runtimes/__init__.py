"""What runs a model: `runner` is the contract, each runtime's room fulfils it, `opening` finds it by name."""

from prunedeploy_engines.runtimes.opening import RUNTIMES, model_target, open_runner, unavailable_reason

__all__ = ["RUNTIMES", "model_target", "open_runner", "unavailable_reason"]
