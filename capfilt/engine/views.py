"""SQL views over the files of a run, for DuckDB: one of rows, and one of their texts.

A stage's files have no key: a row is known by its shard and its place in it, which DuckDB counts.
`rows` joins the stages of the latest round by these; `texts` has a row a text, as `scores.parquet`.
"""

import re
from collections.abc import Sequence
from typing import Final

from capfilt import schema
from capfilt.engine.plan import Plan
from capfilt.errors import InputError
from capfilt.export.kept import PREFIX, Kept
from capfilt.ledger import source
from capfilt.ledger.ledger import SUFFIX, Ledger

ROWS: Final = "rows"
TEXTS: Final = "texts"
_PLACE: Final = ("shard", "shard_row")
_OPTIONS: Final = "filename = true, file_row_number = true, hive_partitioning = false"
_PATTERN: Final = re.compile(r"[*?\[\]{}]")  # what DuckDB takes for a pattern in a path
_OF_TEXT: Final = {
    "itm_score": "caption_itm_scores",
    "itc_score": "caption_itc_scores",
    "similarity": "caption_similarities",
}


def views(ledger: Ledger, plan: Plan, kept: Kept | None, carried: Sequence[str]) -> str:
    """Return the statements that create the views.

    Of a run that is not finished `rows` has nulls, and lacks columns that nobody has written yet.
    `carried` are the names that the export gives to the columns of `kept`.

    Raises:
        InputError: DuckDB would take the run folder's path for a pattern.
    """
    root = str(ledger.root.resolve())
    if _PATTERN.search(root):
        raise InputError(f"DuckDB takes the path {root} for a pattern; move or link the run folder")
    tables = [_scan(ledger, plan, source.STAGE, schema.SOURCE.names, schema.SOURCE.names)]
    for planned in plan.stages:
        names = planned.stage.adds.names
        tables.append(_scan(ledger, plan, planned.id, names, names))
    if kept is not None:
        shown = [f"{PREFIX}{name}" if name in plan.producers else name for name in carried]
        tables.append(_scan(ledger, plan, kept.stage, kept.names, shown))
    joins = "\n  LEFT JOIN ".join(filter(None, tables))
    rows = f"CREATE OR REPLACE VIEW {ROWS} AS\nSELECT * FROM {joins};\n"
    there = {name for name in plan.producers if ledger.shards(plan.producers[name])}
    return f"{rows}\n{_texts(there)}"


def _scan(
    ledger: Ledger, plan: Plan, stage: str, columns: Sequence[str], shown: Sequence[str]
) -> str:
    """Return what reads a stage's files, with what joins them to those before; "": there are none.

    Files of shards that are not of this plan are left out.
    """
    there = ledger.shards(stage)
    shards = [shard for shard in plan.shards if shard in there]
    if not shards:
        return ""
    if len(shards) == len(there):
        files = _quoted(str(ledger.folder(stage).resolve() / f"*{SUFFIX}"))
    else:
        paths = (_quoted(str(ledger.path(stage, shard).resolve())) for shard in shards)
        files = f"[{', '.join(paths)}]"
    named = ", ".join(f"{_name(c)} AS {_name(s)}" for c, s in zip(columns, shown, strict=True))
    scan = (
        "(\n    SELECT parse_filename(filename, true) AS shard, file_row_number AS shard_row,\n"
        f"      {named}\n"
        f"    FROM read_parquet({files}, {_OPTIONS})\n  )"
    )
    return scan if stage == source.STAGE else f"{scan} USING ({', '.join(_PLACE)})"


def _texts(there: set[str]) -> str:
    """Return the view of texts; columns that nobody has written yet are null."""
    names = ("reason", "dup_of", "image_in")
    of_row = [name if name in there else f"NULL::VARCHAR AS {name}" for name in names]
    web = [
        *("key", "url", "'web' AS origin", "NULL::INTEGER AS caption_index", "caption AS text"),
        *(name if name in there else f"NULL::FLOAT AS {name}" for name in _OF_TEXT),
        "keep_web AS kept" if "keep_web" in there else "NULL::BOOLEAN AS kept",
        *of_row,
        "text_in" if "text_in" in there else "NULL::VARCHAR AS text_in",
    ]
    own = [
        *("key", "url", "'synthetic'", "caption_index", "captions[caption_index + 1]"),
        *(_item(names, "FLOAT", there) for names in _OF_TEXT.values()),
        _item("keep_captions", "BOOLEAN", there),
        *of_row,
        _item("captions_in", "VARCHAR", there),
    ]
    numbered = f"SELECT *, unnest(range(len(captions)))::INTEGER AS caption_index FROM {ROWS}"
    selects = [f"SELECT {', '.join(web)}\nFROM {ROWS}"]
    if "captions" in there:
        selects.append(f"SELECT {', '.join(own)}\nFROM ({numbered})")
    return f"CREATE OR REPLACE VIEW {TEXTS} AS\n" + "\nUNION ALL\n".join(selects) + ";\n"


def _item(column: str, kind: str, there: set[str]) -> str:
    """Return the value of a list that belongs to a text; DuckDB counts from 1."""
    return f"{column}[caption_index + 1]" if column in there else f"NULL::{kind}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
