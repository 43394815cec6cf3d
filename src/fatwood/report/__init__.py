"""The file of a fit's statistics, and the page that shows it. Knows JSON values only: no training, no PyTorch."""

from fatwood.report.page import page
from fatwood.report.stats_file import decode, encode, require_stamp, stamp

__all__ = ["decode", "encode", "page", "require_stamp", "stamp"]
