"""Times as people write them: a day, a day and a time, an age.

moment("2026-03-01", "since")           # POSIX time of that day's beginning, here
moment("2026-03-01", "until", end=True) # of its end
moment("30d", "older-than")             # of 30 days ago
"""

import re
from datetime import datetime, timedelta

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.wording import quoted

UNITS = {"h": "hours", "d": "days", "w": "weeks"}
FORMS = "a day as 2026-03-01, a time as 2026-03-01T14:30, or an age as 12h, 30d or 8w"
_AGE = re.compile(rf"([0-9]{{1,5}})\s*([{''.join(UNITS)}])", re.IGNORECASE)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def moment(text: str, what: str, *, end: bool = False, now: datetime | None = None) -> float:
    """The POSIX time that a text means, where this machine is if it names no time zone.

    Args:
        what: what messages call it.
        end: whether a day means its end, and not its beginning.

    Raises:
        InvalidRequest: it is none.
    """
    given = text.strip()
    try:
        if age := _AGE.fullmatch(given):
            return ((now or datetime.now()) - timedelta(**{UNITS[age[2].lower()]: int(age[1])})).timestamp()
        meant = datetime.fromisoformat(given)
        return (meant + timedelta(days=1) if end and _DAY.fullmatch(given) else meant).timestamp()
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest(f"{what}: {quoted(text)} is no date. Give {FORMS}.") from None
