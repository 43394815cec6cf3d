"""Tensors in, small messages out.

The room of threshold encoding: `FlatParameters` makes one vector of a network, `ThresholdEncoder` turns an update of
that vector into a few bytes and keeps the rest, `apply_message` adds such bytes to a vector. It knows nothing of
sockets nor of Spark.
"""

from __future__ import annotations

from fatwood.codec.encoder import Encoded, ThresholdEncoder, apply_message
from fatwood.codec.flat import FlatBuffers, FlatParameters, digest64, trainable_parameters
from fatwood.codec.message import HEADER_BYTES, Coder, Message, decode, encode
from fatwood.codec.residual import ResidualClipping
from fatwood.codec.threshold import AdaptiveThreshold, FixedThreshold, Sent, Threshold, ThresholdState

__all__ = [
    "HEADER_BYTES",
    "AdaptiveThreshold",
    "Coder",
    "Encoded",
    "FixedThreshold",
    "FlatBuffers",
    "FlatParameters",
    "Message",
    "ResidualClipping",
    "Sent",
    "Threshold",
    "ThresholdEncoder",
    "ThresholdState",
    "apply_message",
    "decode",
    "digest64",
    "encode",
    "trainable_parameters",
]
