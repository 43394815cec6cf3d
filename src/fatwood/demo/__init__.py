"""The demo: real digits, a small network, two workers on this machine. ``fatwood demo`` runs it."""

from fatwood.demo.digits import digits

__all__ = ["digits"]
