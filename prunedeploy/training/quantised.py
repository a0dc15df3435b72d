"""A network in training with its int8 file's roundings in the forward pass: quantisation-aware training.

The file, calibrated, says which tensors are rounded and in which steps; the network's own parameters are what is
trained. In every pass their folded weights are rounded as the exporter will round them: what is computed is what an
int8 file exported at this moment would compute. The gradient looks through the roundings (straight through, Jacob et
al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018, section 3).

Batch normalisation is folded with the statistics that it has, which stay; its scale and shift train. Ranges of
activations stay those that were calibrated: a scale that moves while weights adapt to it is another number format at
every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunedeploy.evaluation.engine_twin import EngineTwin
from prunedeploy.models.darknet import Darknet
from prunedeploy.models.detector import Detector


class QuantisedDarknet(Detector):
    """What a network will compute in int8, with gradients to its parameters.

    Evaluation and training mode are the same, since normalisation is folded in both.

    Args:
        model: The network, whose parameters are trained; not changed here.
        twin: Of an int8 file that was exported from it, without suppression in its graph.

    Attributes:
        model: The same.
        twin: The same.
    """

    def __init__(self, model: Darknet, twin: EngineTwin) -> None:
        super().__init__()
        self.cfg, self.model, self.twin = model.cfg, model, twin

    def weights(self) -> dict[str, Tensor]:
        """Folded weights and biases of all convolutions, by the names that the exporter gives them."""
        named: dict[str, Tensor] = {}
        for layer in self.cfg.all_convolutions:
            folded = self.model.conv(layer.index).folded()
            named |= {
                f"layer{layer.index}/{part}": values for part, values in zip(("weight", "bias"), folded, strict=True)
            }
        return named

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Detector`."""
        heads: list[Tensor] = self.twin.file(images, self.weights())
        return heads

    def for_inference(self, dtype: torch.dtype = torch.float32) -> Detector:
        """See `Detector.for_inference`; in float32 only, as 8-bit sums are exact there."""
        super().for_inference(dtype)
        return EngineTwin(self.twin.path, self.cfg, self.twin.file.with_weights(self.weights()))
