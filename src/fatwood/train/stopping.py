"""When to stop before the last epoch, and which parameters to keep: decided alike on all workers.

What is judged is in the ledger, equal on all workers after every round, and the judgement is a function of it alone; so
all stop after the same round, whatever worker was lost in between. Only the clock is one worker's: that of the lowest rank,
who tells the others with its next message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fatwood.errors import OptionError
from fatwood.train.checks import require_number, require_whole
from fatwood.train.records import ValidationRecord

__all__ = ["EarlyStopping", "Verdict"]

Monitor = Literal["auto", "loss", "validation_loss", "validation_accuracy"]


class Verdict(NamedTuple):
    """What a list of scores says."""

    best: bool
    """Whether the last score is the best."""
    stop: str | None
    """Why to stop, if so."""


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Ends a fit when it does not get better, is good enough, bad beyond hope, or has taken too long.

    Deeplearning4j's ``EarlyStoppingConfiguration``: score, patience, time and invalid scores; here they hold on every worker,
    for every strategy, and are looked at with every validation.
    """

    patience: int | None = 3
    """So many judgements in a row without a better score end the fit; None never does."""
    min_delta: float = 0.0
    """By how much a score must be better than the best to count as better."""
    monitor: Monitor = "auto"
    """The score: ``"validation_loss"``, ``"validation_accuracy"``, or the training ``"loss"`` of each epoch. ``"auto"`` is the
    validation's loss where there are validation rows, else the training loss."""
    target: float | None = None
    """A score as good as this ends the fit."""
    worst: float | None = None
    """A score worse than this ends the fit."""
    max_seconds: float | None = None
    """Wall time of training after which the fit ends, at the next agreement."""
    stop_on_nan: bool = True
    """A loss or an update that is not finite ends the fit with the best parameters, instead of with an error."""
    keep_best: bool = True
    """End with the parameters and buffers of the best score rather than the last; optimizers stay where they are."""

    def __post_init__(self) -> None:
        if self.patience is not None:
            require_whole("EarlyStopping(patience=...)", self.patience)
        for name in ("min_delta", "target", "worst"):
            if getattr(self, name) is not None:
                require_number(f"EarlyStopping({name}=...)", getattr(self, name))
        if self.min_delta < 0:
            text = f"EarlyStopping(min_delta=...): expected at least 0, received {self.min_delta!r}"
            raise OptionError(text)
        if self.max_seconds is not None:
            require_number("EarlyStopping(max_seconds=...)", self.max_seconds, above=0)
        choices = ("auto", "loss", "validation_loss", "validation_accuracy")
        if self.monitor not in choices:
            text = (
                f"EarlyStopping(monitor=...): expected one of {', '.join(choices)}, received {self.monitor!r}"
            )
            raise OptionError(text)
        for name in ("stop_on_nan", "keep_best"):
            if not isinstance(getattr(self, name), bool):
                text = f"EarlyStopping({name}=...): expected True or False, received {getattr(self, name)!r}"
                raise OptionError(text)

    def require_validation(self, *, with_validation: bool) -> None:
        """Refuse a score that there will not be.

        Raises:
            OptionError: The score is the validation's, and there are no validation rows.
        """
        if self.monitor.startswith("validation") and not with_validation:
            text = f"EarlyStopping(monitor={self.monitor!r}): expected validation rows, received none"
            raise OptionError(text, hint="pass fit(..., validation=df)")

    def judges_validations(self, *, with_validation: bool) -> bool:
        """Whether the score comes from validations and not from epochs."""
        return self.monitor.startswith("validation") or (self.monitor == "auto" and with_validation)

    def score(self, record: ValidationRecord) -> float:
        """Of a validation.

        Raises:
            OptionError: The accuracy is asked for, and labels are no classes.
        """
        if self.monitor != "validation_accuracy":
            return record.loss
        if record.accuracy is None:
            text = "EarlyStopping(monitor='validation_accuracy'): expected labels that are classes, received others"
            raise OptionError(text, hint="monitor='validation_loss'")
        return record.accuracy

    def judge(self, scores: Sequence[float]) -> Verdict:
        """Judge the last of the scores.

        Args:
            scores: At least one; NaN is never better.
        """
        sign = -1.0 if self.monitor == "validation_accuracy" else 1.0
        best, at = math.inf, -1
        for i, score in enumerate(scores):
            if sign * score < best - (self.min_delta if at >= 0 else 0.0):
                best, at = sign * score, i
        last, improved = scores[-1], at == len(scores) - 1
        if not math.isfinite(last) and self.stop_on_nan:
            return Verdict(improved, f"the score is {last}")
        if self.target is not None and sign * last <= sign * self.target:
            return Verdict(improved, f"the score {last:.6g} has reached the target {self.target:g}")
        if self.worst is not None and sign * last > sign * self.worst:
            return Verdict(improved, f"the score {last:.6g} is worse than {self.worst:g}")
        since = len(scores) - 1 - at
        if self.patience is not None and since >= self.patience:
            text = f"no better score in {since} judgements; the best was {sign * best:.6g}"
            return Verdict(improved, text if at >= 0 else f"no score in {since} judgements was a number")
        return Verdict(improved, None)
