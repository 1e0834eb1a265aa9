"""A policy that samples: which of an image's texts is kept is drawn, by chances and scores.

Mixtures of web and synthetic texts train better than either alone (Nguyen et al., 2307.10350;
VeCLIP, 2310.07699), and texts that stand at very many images teach little (MetaCLIP, 2309.16671).
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.option import POLICY, check_options, option
from capfilt.stages.policies.draws import draws
from capfilt.stages.policies.texts import (
    Mask,
    Score,
    Texts,
    columns_of,
    decided,
    one_batch,
    read_texts,
    text_order,
)

Draws = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mixed:
    """One text an image: first of the web or synthetic, then by score (policy `mix`).

    Where an image has texts of both kinds that reach `threshold`, the web's is taken with the
    probability `web`. Of several synthetic ones each is taken with a probability in proportion to
    exp(score / temperature). A text that says the same at more than `cap` images stays at `cap` of
    them, which are drawn. A draw depends on `seed` and the row's key alone.
    """

    label = "mix"

    web: float = option(
        0.5,
        "Probability of the web's text where there are synthetic ones too",
        flag="web_share",
        panel=POLICY,
        at_least=0,
        at_most=1,
    )
    threshold: float | None = option(
        None, "Keep texts that score at least this much", panel=POLICY, at_least=-1, at_most=1
    )
    temperature: float = option(
        0.1,
        "Near 0 takes the best synthetic text, large values any of them",
        flag="score_temperature",
        panel=POLICY,
        above=0,
    )
    cap: int | None = option(
        None,
        "Keep a text that says the same at most at so many images",
        flag="text_cap",
        panel=POLICY,
        at_least=1,
    )
    seed: int = option(0, "Another one draws other texts", flag="mix_seed", panel=POLICY)
    score: Score = option("itm", "The score that ranks texts", panel=POLICY)
    dedup: bool = True

    name = "select_mixed"
    version = 1
    adds = schema.SELECT

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return ("key", *columns_of([self.score], self.dedup))

    def solve(self, shards: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
        """Decide every row; see `stage.BarrierStage`. Keeps about 18 bytes a text and 16 a row."""
        parts = [self._part(one_batch(table)) for table in shards]
        over = _over(parts, self.cap)
        start = 0
        for part in parts:
            keep = part.keep
            stop = start + len(part.said)
            keep[np.flatnonzero(keep)[over[start:stop]]] = False
            start = stop
            yield decided(part.texts, keep)

    def _part(self, batch: pa.RecordBatch) -> "_Part":
        texts = read_texts(batch, [self.score], self.dedup)
        numbers = _numbers(texts)
        count = 2 + int(numbers.max(initial=0)) + 1
        drawn = draws(self.seed, batch.column("key").to_pylist(), count)
        keep = self._drawn(texts, numbers, drawn)
        return _Part(texts, keep, _digests(batch, keep), drawn[texts.row[keep], 1])

    def _drawn(self, texts: Texts, numbers: npt.NDArray[np.int64], drawn: Draws) -> Mask:
        """Say which text of each row is taken."""
        score = texts.scores[0].astype(np.float64)
        able = ~np.isnan(score)
        if self.threshold is not None:
            able &= texts.scores[0] >= np.float32(self.threshold)
        rows = len(texts.fault)
        web, own = (
            np.bincount(texts.row[able & kind], minlength=rows) > 0
            for kind in (texts.web, ~texts.web)
        )
        takes_web = web & (~own | (drawn[:, 0] < self.web))
        among = able & (texts.web == takes_web[texts.row])
        # The largest of these is drawn as exp(score / temperature) asks (Gumbel, 1954).
        noise = -np.log(-np.log(drawn[texts.row, 2 + numbers]))
        return _largest(texts.row, score / self.temperature + noise, among)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is kept of a shard before all are known: (T,) `keep`, and of each kept text two words.

    `said` is equal where texts say the same; `place` says which of them go first.
    """

    texts: Texts
    keep: Mask
    said: npt.NDArray[np.uint64]
    place: Draws


def _over(parts: list[_Part], cap: int | None) -> Mask:
    """Say which kept texts, of all shards in order, say what `cap` others before them say."""
    said = np.concatenate([np.zeros(0, np.uint64), *(part.said for part in parts)])
    if cap is None:
        return np.zeros(len(said), bool)
    place = np.concatenate([np.zeros(0), *(part.place for part in parts)])
    order = np.lexsort((place, said))
    together = said[order]
    starts = np.searchsorted(together, together)
    over = np.zeros(len(said), bool)
    over[order[np.arange(len(said)) - starts >= cap]] = True
    return over


def _numbers(texts: Texts) -> npt.NDArray[np.int64]:
    """Return each text's number in its row: 0 for the web's."""
    starts = np.flatnonzero(texts.web)  # every row has one place for a web text, its first
    numbers: npt.NDArray[np.int64] = np.arange(len(texts.row)) - starts[texts.row]
    return numbers


def _largest(row: npt.NDArray[np.int32], value: Draws, among: Mask) -> Mask:
    """Return for each row the one place of `among` that has its largest value."""
    places = np.flatnonzero(among)
    order = places[np.lexsort((-places, value[places], row[places]))]
    last = np.ones(len(order), bool)
    last[:-1] = row[order][1:] != row[order][:-1]
    chosen = np.zeros(len(row), bool)
    chosen[order[last]] = True
    return chosen


def _digests(batch: pa.RecordBatch, keep: Mask) -> npt.NDArray[np.uint64]:
    """Return a 64-bit word for each kept text: equal where they say the same."""
    web, own = batch.column("caption"), batch.column("captions").flatten()
    said = pa.concat_arrays([web, own.cast(web.type)]).take(pa.array(text_order(batch)[keep]))
    folded = pc.utf8_lower(pc.utf8_trim_whitespace(said)).to_pylist()
    words = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in folded]
    return np.frombuffer(b"".join(words), "<u8").astype(np.uint64)
