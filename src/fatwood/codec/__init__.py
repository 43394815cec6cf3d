"""Tensors in, small messages out.

The room of threshold encoding: `FlatParameters` makes one vector of a network, `ThresholdEncoder` turns an update of
that vector into a few bytes and keeps the rest, `apply_messages` adds several workers' bytes to a vector. It knows
nothing of sockets nor of Spark.
"""

from __future__ import annotations

from fatwood.codec.diagnostics import EncodingRecord, Multiples, findings
from fatwood.codec.encoder import Encoded, ThresholdEncoder, apply_messages
from fatwood.codec.flat import FlatBuffers, FlatParameters, digest64, require_finite, trainable_parameters
from fatwood.codec.message import Coder, Message, decode, encode, encode_values
from fatwood.codec.residual import ResidualClipping
from fatwood.codec.threshold import (
    AdaptiveThreshold,
    FixedThreshold,
    Sent,
    TargetSparsityThreshold,
    Threshold,
    ThresholdMean,
    ThresholdState,
)
from fatwood.codec.warmup import DensityWarmup, quantile_tau

__all__ = [
    "AdaptiveThreshold",
    "Coder",
    "DensityWarmup",
    "Encoded",
    "EncodingRecord",
    "FixedThreshold",
    "FlatBuffers",
    "FlatParameters",
    "Message",
    "Multiples",
    "ResidualClipping",
    "Sent",
    "TargetSparsityThreshold",
    "Threshold",
    "ThresholdEncoder",
    "ThresholdMean",
    "ThresholdState",
    "apply_messages",
    "decode",
    "digest64",
    "encode",
    "encode_values",
    "findings",
    "quantile_tau",
    "require_finite",
    "trainable_parameters",
]
