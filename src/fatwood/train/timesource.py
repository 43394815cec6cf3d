"""Which clock the times of a run are told by."""

from __future__ import annotations

import logging
import threading
from typing import Final

from fatwood.errors import ExchangeError, OptionError
from fatwood.exchange import ClockOffset, Member

__all__ = ["checked_time_source", "measure_offset"]

LOG = logging.getLogger("fatwood.clock")
"""Gets a warning in a worker's log when a time server did not answer."""

_NTP_SECONDS: Final = 2.0
_NTP_SERVER: Final = "pool.ntp.org"
_NTP_PORT: Final = 123


def checked_time_source(source: str) -> str:
    """The same, if it can be one.

    Args:
        source: ``"job"``: the driver's clock, asked over the job's own connection. ``"system"``: each machine's own clock,
            as it is. ``"ntp"`` or ``"ntp:host"`` or ``"ntp:host:port"``: a time server, ``pool.ntp.org`` unless named.

    Raises:
        OptionError: It is none of these, or ``ntplib`` is not installed here.
    """
    if source in ("job", "system"):
        return source
    if isinstance(source, str) and source.partition(":")[0] == "ntp":
        _ntp_address(source)
        try:
            import ntplib  # noqa: F401
        except ImportError:
            text = f"time_source={source!r}: ntplib is not installed"
            raise OptionError(
                text, hint="pip install 'fatwood[ntp]' on the driver and all executors"
            ) from None
        return source
    text = f"time_source: expected 'job', 'system', 'ntp' or 'ntp:host', received {source!r}"
    raise OptionError(text)


def measure_offset(source: str, member: Member) -> ClockOffset:
    """How this worker's clock stands to that of the job; takes at most some four seconds and never raises.

    Args:
        source: See :func:`checked_time_source`. Where a time server does not answer within two seconds, the driver's clock
            counts, and the remark says so; where the driver does not answer, this machine's.
        member: This worker.
    """
    if source == "system":
        return ClockOffset(seconds=0.0, error_seconds=None, source="system")
    remark = ""
    if source != "job":
        found = _ask_ntp(source)
        if isinstance(found, ClockOffset):
            return found
        remark = f"{source}: {found}"
        LOG.warning("no time from %s (%s); the driver's clock is used", source, found)
    try:
        offset = member.clock_offset()
    except ExchangeError as error:
        remark = "; ".join(filter(None, (remark, error.message)))
        return ClockOffset(seconds=0.0, error_seconds=None, source="system", remark=remark)
    return ClockOffset(seconds=offset.seconds, error_seconds=offset.error_seconds, remark=remark)


def _ask_ntp(source: str) -> ClockOffset | str:
    """One try, in a thread: looking a name up cannot be given a time."""
    host, port = _ntp_address(source)
    found: list[ClockOffset | str] = []

    def ask() -> None:
        try:
            import ntplib

            answer = ntplib.NTPClient().request(host, port=port, version=4, timeout=_NTP_SECONDS)
            error = answer.delay / 2 + answer.root_delay / 2 + answer.root_dispersion
            found.append(ClockOffset(seconds=answer.offset, error_seconds=error, source="ntp"))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=ask, name="fatwood-ntp", daemon=True)
    thread.start()
    thread.join(_NTP_SECONDS)
    return found[0] if found else f"no answer within {_NTP_SECONDS:g} s"


def _ntp_address(source: str) -> tuple[str, int]:
    _, _, address = source.partition(":")
    host, _, port = address.partition(":")
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        text = f"time_source={source!r}: expected a port after the host, received {port!r}"
        raise OptionError(text)
    return host or _NTP_SERVER, int(port or _NTP_PORT)
