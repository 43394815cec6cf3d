"""What prediction, scoring and evaluation have in common on the driver: the rows, and what tasks are told."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from fatwood.data import OnBadRow
from fatwood.data.preprocessing import Transform
from fatwood.errors import OptionError
from fatwood.spark.delivery import deliver
from fatwood.spark.given import Selection, texts_of
from fatwood.spark.gpus import device_order
from fatwood.spark.inference_data import InferenceData, inference_data
from fatwood.spark.inference_rows import InferenceOrder
from fatwood.spark.reports import TOGETHER
from fatwood.spark.shipping import ship
from fatwood.spark.turns import Turns
from fatwood.train import AnyLoss, Keys, losses_of, require_labels, takes_batch
from fatwood.train.device import Asked

__all__ = ["NO_TRANSFORMS", "order_of", "require_label", "rows_of"]

NO_TRANSFORMS: Mapping[str, Transform] = MappingProxyType({})


def rows_of(
    data: object,
    selection: Selection,
    transforms: Mapping[str, Transform],
    key: object = None,
    *,
    keyed: bool = True,
) -> InferenceData:
    """The data as tasks take it, with its preprocessing found to be fitted.

    Args:
        data: Of any form that `fit` takes.
        selection: Of columns.
        transforms: By the names of fields.
        key: Column or columns that stay beside the rows.
        keyed: Whether anything does.
    """
    unfitted = [name for name, transform in transforms.items() if not transform.fitted]
    if unfitted:
        text = f"preprocessing: expected transforms that are fitted, received none for {', '.join(unfitted)}"
        raise OptionError(text, hint="call model.fit first, or load a model that was saved after it")
    rows = inference_data(data, replace(selection, text=texts_of(transforms)), key, keyed=keyed)
    return replace(rows, layout=replace(rows.layout, transforms=dict(transforms)))


def order_of(
    rows: InferenceData,
    parts: Mapping[str, Any],
    batch_size: int,
    on_bad_row: OnBadRow,
    *,
    names: Sequence[str] = (),
    outputs: Keys = None,
    returns: Sequence[str] = ("output",),
    scalar: bool = False,
    workers_per_node: int | None = None,
    device: Asked = "auto",
) -> InferenceOrder:
    """What the tasks are told, the caller's options checked.

    Args:
        rows: From :func:`rows_of`.
        parts: ``network``, ``loss`` if there is one, and what else the tasks need of the user's; see `Parts.others`.
        batch_size: Rows of a forward pass.
        on_bad_row: What to do with bad rows.
        names: Of the columns of the result.
        outputs: Of the network, to predict.
        returns: What of each.
        scalar: Whether an output is one number a row.
        workers_per_node: How many tasks of a host may be computing at a time; None for all.
        device: Where the network is called.
    """
    _require_count("batch_size", batch_size)
    if workers_per_node is not None:
        _require_count("workers_per_node", workers_per_node)
    if on_bad_row not in ("error", "skip"):
        text = f"on_bad_row: expected 'error' or 'skip', received {on_bad_row!r}"
        raise OptionError(text)
    return InferenceOrder(
        delivered=deliver(rows.spark, {**parts, "decoders": rows.decoders}),
        reading=None if rows.reader is None else ship({"reader": rows.reader}),
        columns=rows.names,
        layout=rows.layout,
        measured=rows.measured,
        keys=len(rows.keys),
        key_types=rows.key_types,
        numbered=rows.numbered,
        names=tuple(names),
        batch_size=batch_size,
        on_bad_row=on_bad_row,
        outputs=outputs,
        returns=tuple(returns),
        scalar=scalar,
        turns=None if workers_per_node is None else Turns(secrets.token_hex(8), workers_per_node),
        numbering=rows.numbering,
        device=device_order(rows.spark, device),
    )


def _require_count(where: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        text = f"{where}: expected a whole number of at least 1, received {count!r}"
        raise OptionError(text)


def require_label(where: str, rows: InferenceData, loss: AnyLoss | None) -> None:
    """Refuse labels and a loss that do not belong together."""
    group = rows.layout.label
    if group is None:
        if loss is None or not takes_batch(loss):
            text = f"{where}: expected a label, received None"
            hint = "only a loss(network, batch), whose second parameter is called batch, does without labels"
            raise OptionError(text, hint=hint)
        return
    if loss is None:
        numbers = [field.title for field in group.fields if field.dtype == "float32"]
        if numbers:
            text = (
                f"{where}: expected a model with loss, as the label {numbers[0]!r} is no class, received none"
            )
            hint = "SparkModel(network, loss=...); or cast the label to int if it is a class"
            raise OptionError(text, hint=hint)
        return
    require_labels(loss, group.keys)
    if losses_of(loss) is None and isinstance(group.keys, tuple) and TOGETHER in group.keys:
        text = f"{where}: expected other names of labels than {TOGETHER!r}, which is the report of the loss of all outputs"
        raise OptionError(
            text, hint=f"rename the label, or give each output a loss: loss={{{TOGETHER!r}: ..., ...}}"
        )
