"""Failures counted by kind and by host: in a shard, over retries, and over many shards."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt import schema
from capfilt.engine.attempts import add_attempts, with_attempts
from capfilt.engine.plan import PlannedStage, compile_plan
from capfilt.engine.status import StageStatus, outcome_of, run_outcome, stage_status
from capfilt.engine.worker import commit
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.tally import (
    OTHER_HOSTS,
    Outcome,
    Tally,
    host_of,
    largest_hosts,
    merged,
    summed,
    tally,
)
from capfilt.report.failures import hosts_told, kinds_told, lines_of, plain_failures, why_nothing
from capfilt.stages.download import Download
from capfilt.wording import counted

# (url, image_ref, status, failure, error_message)
Row = tuple[str | None, str | None, str, str | None, str | None]
SLOW: Row = ("http://a.example/1", None, schema.FAILED_TO_DOWNLOAD, "timeout", "timed out")
BUSY: Row = ("http://B.example:80/2", None, schema.FAILED_TO_DOWNLOAD, "http_503", "HTTP Error 503")
GONE: Row = ("http://a.example/3", None, schema.FAILED_TO_DOWNLOAD, "http_404", "HTTP Error 404")
TORN: Row = ("https://a.example/4", None, schema.FAILED_TO_RESIZE, "corrupt_image", "torn")
GOOD: Row = ("http://a.example/5", None, schema.SUCCESS, None, None)
AGAIN: Row = ("http://a.example/5", None, schema.DUPLICATE_URL, schema.DUPLICATE_URL, "again")
LOCAL: Row = ("http://a.example/6", "x.jpg", schema.FAILED_TO_DOWNLOAD, "missing_file", "none")
MUTE: Row = ("http://a.example/7", None, schema.FAILED_TO_DOWNLOAD, None, None)


def as_tables(rows: list[Row]) -> tuple[pa.Table, pa.Table]:
    """Return what a download adds, and the source of it."""
    names = ("url", "image_ref", "status", "failure", "error_message")
    plain: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in rows]
    keyed = [
        {"key": f"{n:032x}", "source_status": "ok", "attempt": 0, **row}
        for n, row in enumerate(plain)
    ]
    return pa.Table.from_pylist(plain, schema.DOWNLOAD), pa.Table.from_pylist(keyed, schema.SOURCE)


def test_failures_are_counted_by_reason_kind_and_host() -> None:
    found = tally(*as_tables([SLOW, SLOW, BUSY, GONE, TORN, GOOD, AGAIN, LOCAL, MUTE]))
    assert found.kinds == {
        "failed_to_download": {
            **{"timeout": 2, "http_503": 1, "http_404": 1, "missing_file": 1, "unknown": 1}
        },
        "failed_to_resize": {"corrupt_image": 1},
    }
    assert found.hosts == {
        "a.example": {"timeout": 2, "http_404": 1, "corrupt_image": 1, "unknown": 1},
        "b.example": {"http_503": 1},
    }


def test_decoders_messages_are_counted_by_their_first_word() -> None:
    errors = ["OSError: truncated at 17", None, "OSError: truncated at 3", "corrupt_image", "?!"]
    table = pa.table({"captions": [None] * 5, "caption_error": errors})
    assert tally(table).kinds == {"undecodable": {"OSError": 2, "corrupt_image": 1, "unknown": 1}}
    both = merged([tally(table), tally(table.rename_columns(["itm_score", "match_error"]))])
    assert both.kinds == tally(table).kinds  # two stages saw the same rows


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://User:pw@WWW.Example.COM.:8080/x", "www.example.com"),
        (" https://b\u00fccher.example/x ", "xn--bcher-kva.example"),
        ("http://[::1]/x", "::1"),
        ("http://a\x1b;31m.example/", "a__31m.example"),
        ("http://[bad/", "-"),
        ("images/1.jpg", "-"),
        (None, "-"),
        ("http://\u202eelpmaxe.example/", "-"),
    ],
)
def test_hosts_are_fit_to_be_shown(url: str | None, host: str) -> None:
    assert host_of(url) == host


@given(st.one_of(st.text(), st.text().map(lambda text: f"http://{text}/x")))
def test_no_address_has_a_host_that_could_do_harm(url: str) -> None:
    host = host_of(url)
    assert 0 < len(host) <= 300
    assert host.isascii()
    assert host.isprintable()
    assert not set(host) & set("<>&\"'`|* ")


def test_a_receipt_names_so_many_hosts_and_no_more() -> None:
    rows = [(f"http://h{n}.example/", *SLOW[1:]) for n in range(600)] + [SLOW, SLOW]
    found = tally(*as_tables(rows))
    assert len(found.hosts) == 257
    assert found.hosts["a.example"] == {"timeout": 2}
    assert sum(sum(kinds.values()) for kinds in found.hosts.values()) == 602
    assert sum(found.hosts[OTHER_HOSTS].values()) == 602 - 2 - 255


def test_very_many_hosts_are_added_up_in_bounded_memory() -> None:
    parts = (Tally({}, {f"h{p}-{n}": {"dns": 1} for n in range(999)}) for p in range(60))
    big = Tally({}, {"big.example": {"dns": 7}})
    found = summed([big, *parts])
    assert len(found.hosts) <= 51_000
    assert sum(sum(kinds.values()) for kinds in found.hosts.values()) == 7 + 60 * 999
    assert largest_hosts(found.hosts, 1)[0] == ("big.example", {"dns": 7})


class Run:
    """A run of one shard, whose download the test makes up."""

    def __init__(self, root: Path, rows: list[Row]) -> None:
        self.ledger = Ledger(root)
        self.rows = rows
        self.shard = f"aaaaaaaa-{len(rows)}-1111111111111111"
        self.fetch: PlannedStage = compile_plan([Download()], [self.shard]).stages[0]
        table = as_tables(rows)[1]
        assert self.ledger.commit(Receipt(source.STAGE, self.shard, len(rows)), table)
        self.fetched(self.shard, rows)

    def fetched(self, shard: str, rows: list[Row]) -> None:
        assert commit(self.ledger, self.fetch, shard, as_tables(rows)[0], 1.0)

    def outcome(self) -> Outcome:
        shards = with_attempts(self.ledger, [self.shard], self.fetch.id)
        return run_outcome(self.ledger, compile_plan([Download()], shards))


def test_a_row_that_was_fetched_again_counts_by_its_last_attempt(tmp_path: Path) -> None:
    run = Run(tmp_path, [SLOW, GONE, BUSY, GOOD, SLOW, AGAIN])
    before = run.outcome()
    assert before.failed.kinds == {
        "failed_to_download": {"timeout": 2, "http_404": 1, "http_503": 1}
    }
    (first,) = add_attempts(run.ledger, [run.shard], run.fetch.id)
    waiting = run.outcome()
    assert (waiting.failed, waiting.fetched) == (before.failed, False)  # not fetched again yet
    run.fetched(first, [GOOD, SLOW, GONE])
    after = run.outcome()
    assert after.failed.kinds == {"failed_to_download": {"http_404": 2, "timeout": 1}}
    assert after.failed.hosts == {"a.example": {"http_404": 2}, "b.example": {"timeout": 1}}
    assert (after.fetched, after.usable) == (True, 2)
    (second,) = add_attempts(run.ledger, [run.shard], run.fetch.id)
    run.fetched(second, [GOOD])
    last = run.outcome()
    assert last.failed.total == {"http_404": 2}
    plan = compile_plan([Download()], with_attempts(run.ledger, [run.shard], run.fetch.id))
    status = stage_status(run.ledger, plan, plan.stages[0])
    assert status.counts == {"failed_to_download": 2, "success": 3, "duplicate_url": 1}
    assert "failed_to_download 2" in status.line()


def test_hosts_beyond_the_bound_are_taken_off_exactly(tmp_path: Path) -> None:
    rows: list[Row] = [(f"http://h{n}.example/", *SLOW[1:]) for n in range(300)]
    run = Run(tmp_path, rows)
    (again,) = add_attempts(run.ledger, [run.shard], run.fetch.id)
    run.fetched(again, [GOOD] * 300)
    assert run.outcome().failed == Tally()


def test_receipts_of_before_have_no_failures(tmp_path: Path) -> None:
    text = '{"stage": "a-1", "shard": "s", "rows": 3, "seconds": 0.0, "counts": {"success": 3}}'
    assert Receipt(**json.loads(text)).failures == {}


def test_what_is_told_of_a_kind() -> None:
    told = {each.kind: each for each in kinds_told({"timeout": 12, "private_address": 263})}
    assert list(told) == ["private_address", "timeout"]
    assert (
        told["private_address"].words
        == "the host is no public address; capfilt retry --allow-private-hosts"
    )
    assert told["timeout"].remedy == "capfilt retry"
    (http,) = kinds_told({"http_429": 1})
    assert http.words == "too many requests; capfilt retry"
    (odd,) = kinds_told({"http_799": 1})
    assert odd.meaning == ""
    (extra,) = kinds_told({"unsupported_image": 3})
    assert "capfilt[images]" in extra.words
    many = kinds_told({f"http_{400 + n}": 30 - n for n in range(14)})
    assert len(many) == 11
    assert (many[-1].kind, many[-1].rows) == ("4 other kinds", 20 + 19 + 18 + 17)


def test_people_and_machines_are_told_the_same() -> None:
    hosts = {f"h{n}": {"machine": n + 1} for n in range(12)}
    failed = Tally({"failed_to_download": {"machine": 78}}, hosts)
    assert [host for host, *_ in hosts_told(failed)][-2:] == ["h2", "other hosts"]
    plain = plain_failures(failed)
    assert (plain["rows"], len(plain["hosts"]), plain["other_hosts_rows"]) == (78, 10, 3)
    text = "\n".join(lines_of(failed))
    for word in ("failed_to_download", "machine", "capfilt retry", "failures by host", "h11"):
        assert word in text
    assert lines_of(Tally()) == []


def test_only_a_run_that_tried_every_row_can_have_failed_in_all() -> None:
    failed = Tally({"failed_to_download": {"private_address": 2, "timeout": 1}})
    why = why_nothing(Outcome(True, 0, 1, failed))
    assert why == (
        "every row failed, none has a usable picture: 2 of 4 rows by private_address "
        "(the host is no public address; capfilt retry --allow-private-hosts)"
    )
    assert why_nothing(Outcome(False, 0, 1, failed)) is None
    assert why_nothing(Outcome(True, 1, 1, failed)) is None
    assert why_nothing(Outcome()) is None


def test_rows_that_two_stages_refuse_in_other_words_are_lost_once() -> None:
    def stage(name: str, counts: dict[str, int], *errors: str) -> StageStatus:
        failed = Tally({"undecodable": Counter(errors)} if errors else {})
        return StageStatus(name, 1, 1, 2, 2, 1.0, counts, failed)

    fetch, caption = stage("download-1", {"success": 2}), stage("caption-1", {}, "OSError")
    found = outcome_of([fetch, caption, stage("match_web-1", {}, "ValueError")])
    assert (found.fetched, found.usable) == (True, 1)
    assert why_nothing(found) is None
    both = stage("match_web-1", {}, "OSError", "OSError")
    assert str(why_nothing(outcome_of([fetch, caption, both]))).endswith("2 of 2 rows by OSError")


def test_nouns_agree_with_their_numbers() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 1000)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "1,000 rows",
    ]
    assert counted(2, "copy", "copies") == "2 copies"
