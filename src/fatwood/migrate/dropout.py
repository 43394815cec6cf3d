"""The original's dropout, which a layer applies to its input; its number is the probability to *keep* an activation."""

from __future__ import annotations

from torch import nn

from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.fields import Fields, refused, simple_name

__all__ = ["dropout_of"]


def dropout_of(conf: LayerConf, axes: int = 1) -> nn.Module | None:
    """What a layer does to its input in training.

    Args:
        conf: Of the layer.
        axes: Of its input besides the rows: 1 for vectors, 2 for sequences, 3 for images.

    Returns:
        A module, or None where the layer drops nothing.

    Raises:
        UserError: Another kind of noise.
    """
    value = conf.fields.get("iDropout")
    if value is None:
        keep = Fields(conf).number("dropOut", 0.0)
        kind = "Dropout"
    else:
        kind = simple_name(value)
        number = value.get("p") if isinstance(value, dict) else None
        if (
            kind not in ("Dropout", "AlphaDropout", "SpatialDropout")
            or isinstance(number, bool)
            or not isinstance(number, int | float)
            or value.get("pSchedule") is not None
        ):
            raise refused(conf, "Dropout, AlphaDropout or SpatialDropout with a number p as iDropout", value)
        keep = float(number)
    if keep in (0.0, 1.0):
        return None
    if not 0 < keep < 1:
        raise refused(conf, "a probability to keep an activation between 0 and 1", keep)
    drop = round(1 - keep, 12)
    if kind == "AlphaDropout":
        return nn.AlphaDropout(drop)
    if kind == "SpatialDropout" and axes > 1:
        return nn.Dropout1d(drop) if axes == 2 else nn.Dropout2d(drop)
    return nn.Dropout(drop)
