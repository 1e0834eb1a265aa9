from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt import schema
from capfilt.engine.attempts import (
    add_attempts,
    attempt_of,
    lost_attempts,
    next_attempt,
    restore_attempts,
    with_attempts,
)
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.stages.failures import can_pass

FETCH = "download-0123456789abcdef"
OTHER = "download-fedcba9876543210"
SHARD = "aaaaaaaa-6-1111111111111111"
FIRST, SECOND = f"{SHARD}~1.01234567", f"{SHARD}~2.01234567"

# (status, failure): what can come of a row.
GOOD = (schema.SUCCESS, None)
SLOW = (schema.FAILED_TO_DOWNLOAD, "timeout")
GONE = (schema.FAILED_TO_DOWNLOAD, "http_404")
PRIVATE = (schema.FAILED_TO_DOWNLOAD, "private_address")
TORN = (schema.FAILED_TO_RESIZE, "not_an_image")
INVALID = (schema.INVALID_URL, "invalid_url")
MUTE = (schema.FAILED_TO_DOWNLOAD, None)
Outcome = tuple[str, str | None]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A run with one shard of six rows, not downloaded yet."""
    ledger = Ledger(tmp_path)
    rows: list[dict[str, Any]] = [
        {
            "key": f"{number:032x}",
            "url": f"http://a.example/{number}.jpg",
            "caption": None if number == 2 else f"text {number}",
            "image_ref": None,
            "source_status": schema.SOURCE_OK,
            "source_error": None,
            "attempt": 0,
        }
        for number in range(6)
    ]
    table = pa.Table.from_pylist(rows, schema.SOURCE)
    assert ledger.commit(Receipt(source.STAGE, SHARD, 6), table)
    return ledger


def downloaded(ledger: Ledger, shard: str, outcomes: list[Outcome], fetch: str = FETCH) -> None:
    # What a server says is hostile text; nothing is decided by it.
    rows = [{"status": s, "failure": f, "error_message": "timed out"} for s, f in outcomes]
    assert len(rows) == ledger.receipt(source.STAGE, shard).rows
    table = pa.Table.from_pylist(rows, schema.DOWNLOAD)
    assert ledger.commit(Receipt(fetch, shard, len(rows)), table)


def test_only_failures_that_can_pass_are_tried_again(ledger: Ledger) -> None:
    before = ledger.read(source.STAGE, SHARD)
    downloaded(ledger, SHARD, [GOOD, GONE, SLOW, TORN, SLOW, INVALID])
    assert add_attempts(ledger, [SHARD], FETCH) == [FIRST]
    again = ledger.read(source.STAGE, FIRST)
    assert again.schema.remove_metadata() == schema.SOURCE
    assert ledger.check(source.STAGE, FIRST, schema.SOURCE).rows == 2
    expected = before.take(pa.array([2, 4]))
    assert again.drop_columns("attempt").equals(expected.drop_columns("attempt"))
    assert again["attempt"].to_pylist() == [1, 1]
    assert ledger.read(source.STAGE, SHARD).equals(before)  # nothing is rewritten


@pytest.mark.parametrize(
    "outcomes",
    [[GOOD] * 6, [GONE] * 6, [PRIVATE] * 6, [TORN] * 6, [INVALID] * 6, [MUTE] * 6],
    ids=str,
)
def test_where_nothing_can_pass_there_is_no_attempt(
    ledger: Ledger, outcomes: list[Outcome]
) -> None:
    downloaded(ledger, SHARD, outcomes)
    assert add_attempts(ledger, [SHARD], FETCH) == []
    assert ledger.shards(source.STAGE) == {SHARD}


def test_a_shard_that_is_not_downloaded_is_left_alone(ledger: Ledger) -> None:
    assert add_attempts(ledger, [SHARD], FETCH) == []
    downloaded(ledger, SHARD, [SLOW] * 6, OTHER)
    assert add_attempts(ledger, [SHARD], FETCH) == []
    assert ledger.shards(source.STAGE) == {SHARD}


def test_an_attempt_is_tried_again_when_it_has_run_itself(ledger: Ledger) -> None:
    downloaded(ledger, SHARD, [SLOW] * 6)
    assert with_attempts(ledger, [SHARD], FETCH) == (SHARD,)
    assert add_attempts(ledger, with_attempts(ledger, [SHARD], FETCH), FETCH) == [FIRST]
    assert add_attempts(ledger, with_attempts(ledger, [SHARD], FETCH), FETCH) == []  # not run yet
    downloaded(ledger, FIRST, [GOOD, SLOW, GONE, GOOD, SLOW, GOOD])
    assert add_attempts(ledger, with_attempts(ledger, [SHARD], FETCH), FETCH) == [SECOND]
    assert ledger.read(source.STAGE, SECOND)["key"].to_pylist() == [f"{n:032x}" for n in (1, 4)]
    assert ledger.read(source.STAGE, SECOND)["attempt"].to_pylist() == [2, 2]
    assert with_attempts(ledger, [SHARD], FETCH) == (SHARD, FIRST, SECOND)
    assert source.rows_of([SHARD, FIRST, SECOND], ledger) == 6 + 6 + 2


def test_another_download_has_attempts_of_its_own(ledger: Ledger) -> None:
    downloaded(ledger, SHARD, [SLOW] * 6)
    downloaded(ledger, SHARD, [GOOD] * 5 + [SLOW], OTHER)
    assert add_attempts(ledger, [SHARD], FETCH) == [FIRST]
    assert with_attempts(ledger, [SHARD], OTHER) == (SHARD,)
    (own,) = add_attempts(ledger, [SHARD], OTHER)
    assert own == f"{SHARD}~1.fedcba98"
    assert ledger.receipt(source.STAGE, own).rows == 1
    assert with_attempts(ledger, [SHARD], FETCH) == (SHARD, FIRST)


def test_each_shard_is_followed_by_its_attempts_in_order(ledger: Ledger) -> None:
    later = "bbbbbbbb-6-2222222222222222"
    rows = ledger.read(source.STAGE, SHARD)
    ledger.commit(Receipt(source.STAGE, later, 6), rows)
    for shard in (SHARD, later):
        downloaded(ledger, shard, [SLOW] * 6)
    unknown = "cccccccc-1-3333333333333333"
    assert add_attempts(ledger, [SHARD, later, unknown], FETCH) == [FIRST, f"{later}~1.01234567"]
    expanded = with_attempts(ledger, [later, unknown, SHARD], FETCH)
    assert expanded == (later, f"{later}~1.01234567", unknown, SHARD, FIRST)


@given(st.integers(1, 30))
def test_names_count_the_attempts(times: int) -> None:
    name = SHARD
    for number in range(times):
        assert attempt_of(name) == number
        name = next_attempt(name, FETCH)
        assert name == f"{SHARD}~{number + 1}.01234567"


@pytest.mark.parametrize("failure", ["private_address", "http_403", "opted_out"])
def test_what_has_a_cure_is_tried_again_with_it_alone(ledger: Ledger, failure: str) -> None:
    cured = (schema.FAILED_TO_DOWNLOAD, failure)
    downloaded(ledger, SHARD, [GOOD, cured, SLOW, GONE, cured, INVALID])
    assert add_attempts(ledger, [SHARD], FETCH, frozenset({failure})) == [FIRST]
    assert ledger.read(source.STAGE, FIRST)["key"].to_pylist() == [f"{n:032x}" for n in (1, 2, 4)]


def test_what_an_earlier_attempt_left_out_is_found_when_its_cure_comes(ledger: Ledger) -> None:
    downloaded(ledger, SHARD, [GOOD, PRIVATE, SLOW, GONE, SLOW, GOOD])
    assert add_attempts(ledger, [SHARD], FETCH) == [FIRST]
    downloaded(ledger, FIRST, [GOOD, GONE])
    chain = with_attempts(ledger, [SHARD], FETCH)
    assert add_attempts(ledger, chain, FETCH) == []
    assert add_attempts(ledger, chain, FETCH, frozenset({"private_address"})) == [SECOND]
    assert ledger.read(source.STAGE, SECOND)["key"].to_pylist() == [f"{1:032x}"]
    assert ledger.read(source.STAGE, SECOND)["attempt"].to_pylist() == [2]


PASSING = ["timeout", "http_429", "http_408", "http_503", "reset", "refused", "incomplete_body"]
PASSING += ["dns_unavailable", "unreachable", "machine", "proxy"]
LASTING = [None, "", "http_404", "http_403", "http_410", "dns", "private_address", "too_large"]
LASTING += ["tls", "opted_out", "not_an_image", "invalid_url", "http_5xx", "timed out"]


@pytest.mark.parametrize("failure", PASSING)
def test_what_can_pass(failure: str) -> None:
    assert can_pass(failure)


@pytest.mark.parametrize("failure", LASTING)
def test_what_cannot(failure: str | None) -> None:
    assert not can_pass(failure)


def test_the_rows_of_attempts_that_were_lost_are_made_again(ledger: Ledger) -> None:
    downloaded(ledger, SHARD, [SLOW, GOOD, SLOW, TORN, SLOW, INVALID])
    add_attempts(ledger, [SHARD], FETCH)
    downloaded(ledger, FIRST, [GOOD, SLOW, SLOW])
    add_attempts(ledger, [SHARD], FETCH)
    downloaded(ledger, SECOND, [GOOD, GONE])
    before = [ledger.read(source.STAGE, shard) for shard in (FIRST, SECOND)]
    assert lost_attempts(ledger, [SHARD], FETCH) == []
    for lost in ([FIRST], [SECOND], [FIRST, SECOND]):
        for shard in lost:
            ledger.path(source.STAGE, shard).unlink()
        assert [name for _, name in lost_attempts(ledger, [SHARD], FETCH)] == lost
        restore_attempts(ledger, [SHARD], FETCH)
        assert [ledger.read(source.STAGE, shard) for shard in (FIRST, SECOND)] == before
    assert lost_attempts(ledger, [SHARD], OTHER) == []
