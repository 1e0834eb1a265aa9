"""A run that does shards again because a stage has changed says so, once, and why."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from capfilt.engine.outdated import outdated
from capfilt.engine.plan import Plan, compile_plan
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.stages.download import Download

SHARDS = ("aaaaaaaa-1-1", "bbbbbbbb-1-2", "cccccccc-1-3")


@dataclass(frozen=True)
class Paint:
    """A stage of any version, which can be told from another by its colour."""

    version: int
    colour: str = "red"
    changes: ClassVar[dict[int, str]] = {2: "red was pink", 3: "it dries"}

    name = "paint"
    resource = "cpu"
    needs = ("key",)
    adds = pa.schema([pa.field("painted", pa.string())])
    rows_per_call: ClassVar[int | None] = None
    opened: int = field(default=0)


def plan_of(version: int, colour: str = "red") -> Plan:
    return compile_plan([Paint(version, colour)], SHARDS)  # type: ignore[list-item]  # never opened


def do(ledger: Ledger, version: int, *shards: str, colour: str = "red") -> None:
    planned = plan_of(version, colour).stages[0]
    for shard in shards:
        receipt = Receipt(planned.id, shard, 0, version=version)
        assert ledger.commit(receipt, planned.stage.adds.empty_table())


def told(ledger: Ledger, version: int) -> list[str]:
    return list(outdated(plan_of(version), ledger))


def test_what_is_new_and_what_is_done_says_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert told(ledger, 3) == []
    do(ledger, 3, *SHARDS)
    do(ledger, 1, *SHARDS)
    assert told(ledger, 3) == []  # nothing is done again


def test_what_is_done_again_is_counted_with_every_reason_since(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    do(ledger, 1, *SHARDS[:2])
    do(ledger, 3, SHARDS[1])
    (line,) = told(ledger, 3)
    assert line.startswith("paint: 1 of 3 shards are there by an older version of this stage.")
    assert "because red was pink; it dries." in line


def test_only_changes_since_that_version_are_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    do(ledger, 2, *SHARDS)
    (line,) = told(ledger, 3)
    assert "because it dries." in line


def test_another_configuration_of_the_same_version_is_no_change(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    do(ledger, 3, *SHARDS, colour="blue")
    assert told(ledger, 3) == []


def test_a_receipt_without_a_version_is_of_the_first(tmp_path: Path) -> None:
    assert Receipt("paint-1", "a", 0).version == 1
    ledger = Ledger(tmp_path)
    planned = plan_of(1).stages[0]
    ledger.commit(Receipt(planned.id, SHARDS[0], 0), planned.stage.adds.empty_table())
    assert len(told(ledger, 2)) == 1


@pytest.mark.parametrize("stage", [Download()])
def test_every_version_above_the_first_says_why(stage: Download) -> None:
    assert set(stage.changes) == set(range(2, stage.version + 1))
