"""How close captions are to references: CIDEr and BLEU, by pycocoevalcap, without its Java."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_WORD: Final = re.compile(r"[a-z0-9']+")


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """CIDEr-D in [0, 10] (times 100 in papers), BLEU-1 to 4 in [0, 1]."""

    cider: float
    bleu: tuple[float, float, float, float]

    def plain(self) -> dict[str, float]:
        """Return `CIDEr` and `BLEU@1` … `BLEU@4`."""
        return {"CIDEr": self.cider, **{f"BLEU@{n + 1}": b for n, b in enumerate(self.bleu)}}


def caption_scores(written: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Compare one caption an image with its references.

    Words are lower-case runs of letters, digits and apostrophes: COCO's tokenizer is a Java
    program, and differs in little else than punctuation.

    Raises:
        ValueError: there are no captions, or an image has no reference.
    """
    if not written or any(not own for own in references):
        raise ValueError("captions are compared with at least one reference each")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    hypotheses = {n: [_tokenised(text)] for n, text in enumerate(written)}
    truths = {n: [_tokenised(text) for text in own] for n, own in enumerate(references)}
    if hypotheses.keys() != truths.keys():
        raise ValueError(f"{len(hypotheses)} captions for {len(truths)} images")
    cider, _ = Cider().compute_score(truths, hypotheses)
    bleu, _ = Bleu(4).compute_score(truths, hypotheses, verbose=0)
    one, two, three, four = (float(value) for value in bleu)
    return CaptionScores(float(cider), (one, two, three, four))


def has_words(text: str) -> bool:
    """Say whether anything of a text is compared at all."""
    return _WORD.search(text.lower()) is not None


def _tokenised(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))
