"""Hostile text survives every table format: what a writer writes, the reader gives."""

import csv
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.inputs.tools import Pair, pairs_of

# All of Unicode but surrogates, and often the characters that mean something to a format.
TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(list('",;\t\n\r\\\x00{}|')))
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8)
NULLABLE = st.lists(st.tuples(st.none() | TEXTS, st.none() | TEXTS), min_size=1, max_size=8)
quick = settings(max_examples=60, deadline=None)  # deadlines are timed assertions


def through(name: str, content: bytes) -> list[Pair]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        return pairs_of(path)


def delimited(rows: list[tuple[str, str]], delimiter: str, quoting: int) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]  # an int is a QUOTE_ constant
    writer.writerows([("url", "caption"), *rows])
    return out.getvalue().encode()


@quick
@given(ROWS)
@example([('"', ""), ("\r", '"\n"')])
def test_csv(rows: list[tuple[str, str]]) -> None:
    assert through("a.csv", delimited(rows, ",", csv.QUOTE_MINIMAL)) == rows
    assert through("a.csv", delimited(rows, ";", csv.QUOTE_ALL)) == rows


@quick
@given(ROWS)
@example([('"', ""), ("\r", '"\n"')])
def test_tsv_with_all_quoted(rows: list[tuple[str, str]]) -> None:
    assert through("a.tsv", delimited(rows, "\t", csv.QUOTE_ALL)) == rows


LITERAL = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), st.just('"'))
)


@quick
@given(st.lists(st.tuples(LITERAL, LITERAL), min_size=1, max_size=8), st.text('a" ', max_size=9))
def test_tsv_without_quoting(rows: list[tuple[str, str]], text: str) -> None:
    """One row that no quoting writer writes (its quote never closes) makes all quotes text."""
    rows = [*rows, ("u", f'"{text} a')]
    lines = [("url", "caption"), *rows]
    content = "".join(f"{url}\t{caption}\n" for url, caption in lines)
    assert through("a.tsv", content.encode()) == rows


@quick
@given(NULLABLE, st.booleans())
def test_json_lines(rows: list[Pair], ascii_only: bool) -> None:
    lines = [json.dumps({"url": u, "caption": c}, ensure_ascii=ascii_only) for u, c in rows]
    assert through("a.jsonl", "\n".join(lines).encode()) == rows


@quick
@given(NULLABLE, st.sampled_from([pa.string(), pa.large_string()]), st.booleans())
def test_parquet(rows: list[Pair], kind: pa.DataType, as_dictionary: bool) -> None:
    columns = [pa.array(list(column), kind) for column in zip(*rows, strict=True)]
    if as_dictionary:
        columns = [column.dictionary_encode() for column in columns]
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, names=["url", "caption"]), out, row_group_size=3)
    assert through("a.parquet", out.getvalue().to_pybytes()) == rows
