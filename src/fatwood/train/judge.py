"""Early stopping on one worker: judges what is in the ledger, keeps the best parameters, and stops the run in the ledger.

All workers judge the same numbers by the same rule after the same round, so all come to the same end.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from fatwood.codec import FlatBuffers, require_finite
from fatwood.codec.vectors import Update, Vector, computed
from fatwood.errors import NotFiniteError
from fatwood.train.header import Header
from fatwood.train.kept import Best
from fatwood.train.ledger import Ledger
from fatwood.train.records import ValidationRecord
from fatwood.train.stopping import EarlyStopping, Verdict

__all__ = ["Judge"]


class Judge:
    """Applies a rule, if there is one.

    Args:
        rule: When to stop, and whether to keep the best.
        agreed: The agreed parameters' memory.
        buffers: Of the network.
    """

    def __init__(self, rule: EarlyStopping | None, agreed: Vector, buffers: FlatBuffers) -> None:
        self._rule = rule
        self._start = time.monotonic()
        self.best = Best(agreed, buffers)
        """What was kept."""

    def start(self, ledger: Ledger) -> None:
        """Begin to count time; what a run before took that is in the ledger counts, too."""
        self._start = time.monotonic() - sum(record.seconds for record in ledger.records)

    def time_is_over(self) -> bool:
        """Whether training has taken longer than it may."""
        limit = None if self._rule is None else self._rule.max_seconds
        return limit is not None and time.monotonic() - self._start >= limit

    def refuses(self, header: Header, vector: Update) -> bool:
        """Whether the loss or the update is not finite, and that is a reason to stop instead of an error."""
        if self._rule is None or not self._rule.stop_on_nan or not header.share:
            return False
        try:  # before an encoder sees it: it cannot be used after such an update
            require_finite(computed(vector))
        except NotFiniteError:
            return True
        return not math.isfinite(header.loss_sum)

    def epoch(self, ledger: Ledger) -> None:
        """Judge the training loss of the epoch that has just ended, if that is the score."""
        rule = self._rule
        if rule is not None and not rule.judges_validations(with_validation=ledger.with_validation):
            self._take(rule.judge([record.loss for record in ledger.records]), ledger, 0.0)

    def validation(self, record: ValidationRecord, ledger: Ledger, seconds: float) -> None:
        """Judge a validation and enter it in the ledger.

        Args:
            record: That was just made.
            ledger: Without it.
            seconds: Wall seconds since the epoch's beginning.
        """
        rule, earlier = self._rule, ledger.validations
        if rule is None or not rule.judges_validations(with_validation=True):
            best = all(not record.loss >= other.loss for other in earlier) and not math.isnan(record.loss)
            ledger.enter_validation(replace(record, best=best), seconds)
            return
        verdict = rule.judge([rule.score(r) for r in (*earlier, record)])
        ledger.enter_validation(replace(record, best=verdict.best), seconds)
        self._take(verdict, ledger, seconds)

    def _take(self, verdict: Verdict, ledger: Ledger, seconds: float) -> None:
        if verdict.best and self._rule is not None and self._rule.keep_best:
            self.best.keep()
        if verdict.stop is not None and ledger.stopped is None:
            ledger.stop(verdict.stop, seconds)
