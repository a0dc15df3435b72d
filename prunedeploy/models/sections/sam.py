"""Section ``sam``: spatial attention, the product of two maps of one shape.

Reference: AlexeyAB's Darknet, ``forward_sam_layer``.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunedeploy.models.sections.product import Product, activation_of, single_source
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Sam(Product):
    """The product of two maps, value by value."""

    @classmethod
    def read(cls, reader: LayerReader) -> Sam:
        """See `Layer.read`."""
        source, shape = single_source(reader), reader.shape
        other = reader.layers[source].out_shape
        if other != shape:
            raise reader.error(
                f"multiplies shapes {shape} and {other}", "from", "point it at a layer of the same shape"
            )
        return cls(*reader.wiring(shape, (reader.previous, source), shape[:1] * 2), activation_of(reader))
