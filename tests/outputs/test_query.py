"""What people say of pictures, as times and bounds."""

from datetime import datetime, timedelta

import pytest

from layerdiffuse_mcp.api.dates import moment
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.outputs.query import Query, wanted

NOW = datetime(2026, 3, 31, 18, 30)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-03-01", datetime(2026, 3, 1)),
        (" 2026-03-01T14:30 ", datetime(2026, 3, 1, 14, 30)),
        ("2026-03-01 14:30", datetime(2026, 3, 1, 14, 30)),
        ("2026-03-01T14:30:00+00:00", datetime.fromisoformat("2026-03-01T14:30:00+00:00")),
        ("30d", NOW - timedelta(days=30)),
        ("12H", NOW - timedelta(hours=12)),
        ("8 w", NOW - timedelta(weeks=8)),
    ],
)
def test_a_day_a_time_and_an_age_are_moments(text: str, meant: datetime):
    assert moment(text, "since", now=NOW) == meant.timestamp()


def test_a_day_has_an_end_and_a_time_is_its_own():
    assert moment("2026-03-31", "until", end=True) == datetime(2026, 4, 1).timestamp()
    assert moment("2026-03-31T10:00", "until", end=True) == datetime(2026, 3, 31, 10).timestamp()


@pytest.mark.parametrize("text", ["", "30", "30m", "-3d", "d", "soon", "2026-13-01", "٣d"])
def test_what_is_no_date_is_refused_with_what_is(text: str):
    with pytest.raises(InvalidRequest, match=r"--older-than: .* is no date\. Give a day as 2026-03-01.*30d"):
        moment(text, "--older-than")


def test_sizes_are_numbers_or_shapes():
    assert wanted(size="1024X768") == Query(width=1024, height=768)
    assert wanted(size=" square ") == Query(least=0.95, most=1.05)
    with pytest.raises(InvalidRequest, match="size 'squar' is not understood"):
        wanted(size="squar")
