"""What a model is worth on scenes that it never saw, and what a cleaning kept of the web."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from capfilt.evaluate.models import Settings, evaluate, find_models
from capfilt.evaluate.pairs import load_pairs
from capfilt.simweb.grammar import facts_true
from capfilt.simweb.human import FILE
from capfilt.simweb.scenes import sample_scene


@dataclass(frozen=True, slots=True)
class Worth:
    """Shares in [0, 1], CIDEr in [0, 10].

    tr1, ir1: texts of an image and images of a text found first, by ITC and by ITM re-ranking of
    the best 32, of the pre-trained model as it is. cider, true: of its captions by beam search
    after a short fine-tuning on human pairs, as in Table 1; true: every statement holds.
    zero_cider, zero_true: without the fine-tuning.
    """

    tr1_itc: float
    ir1_itc: float
    tr1: float
    ir1: float
    cider: float
    true: float
    zero_cider: float
    zero_true: float


def judged(root: Path, seed: int, pretrained: Path, captioner: Path) -> Worth:
    """Judge a pre-trained model, and the captioner fine-tuned from it, on the held-out scenes."""
    pairs = load_pairs(str(root / "held-out"))
    scenes = _scenes(root / "held-out")
    how = Settings(top=32)
    own = str(pretrained / "captioner")
    first = evaluate(pairs, find_models(own, str(pretrained / "matcher")), how, lambda _: None)
    then = evaluate(pairs, find_models(str(captioner / "captioner"), None), how, lambda _: None)
    by_itc, by_itm = first.retrieval_itc, first.retrieval_itm
    if by_itc is None or by_itm is None or first.captions is None or then.captions is None:
        raise RuntimeError("both models were given, so both are judged")
    return Worth(
        tr1_itc=by_itc.plain()["TR@1"],
        ir1_itc=by_itc.plain()["IR@1"],
        tr1=by_itm.plain()["TR@1"],
        ir1=by_itm.plain()["IR@1"],
        cider=then.captions.cider,
        true=_true(then.written, scenes, seed),
        zero_cider=first.captions.cider,
        zero_true=_true(first.written, scenes, seed),
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """Texts of an export, and the share of them that is true of their picture, by origin."""

    web: int
    web_true: float
    synthetic: int
    synthetic_true: float

    @property
    def true(self) -> float:
        """The share of all texts that is true: the export's precision."""
        total = self.web + self.synthetic
        right = self.web * self.web_true + self.synthetic * self.synthetic_true
        return right / total if total else 0.0


def kept_texts(root: Path, export: Path, seed: int) -> Kept:
    """Compare every text of an export with what its picture shows."""
    rows = pq.read_table(root / "web" / "truth.parquet", columns=["url", "scene_index"])
    scene_of = dict(zip(*(rows[name].to_pylist() for name in ("url", "scene_index")), strict=True))
    found: dict[str, list[bool]] = {"web": [], "synthetic": []}
    for file in sorted((export / "data").glob("*.parquet")):
        columns = ["url", "text", "origin"]
        table = pq.read_table(file, columns=columns, page_checksum_verification=True)
        for row in table.to_pylist():
            scene = sample_scene(seed, scene_of[row["url"]])
            found[row["origin"]].append(facts_true(row["text"].rstrip("."), scene))
    shares = {origin: sum(own) / len(own) if own else 0.0 for origin, own in found.items()}
    return Kept(len(found["web"]), shares["web"], len(found["synthetic"]), shares["synthetic"])


def _scenes(folder: Path) -> list[int]:
    table = pq.read_table(folder / FILE, columns=["key", "scene_index"]).to_pydict()
    return list(dict(zip(table["key"], table["scene_index"], strict=True)).values())


def _true(texts: list[str], scenes: list[int], seed: int) -> float:
    told = zip(texts, scenes, strict=True)
    right = [facts_true(text.rstrip("."), sample_scene(seed, scene)) for text, scene in told]
    return sum(right) / len(right)
