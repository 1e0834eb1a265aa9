"""The WordPiece vocabulary and tokenizer of the embedded models."""

import string
from pathlib import Path
from typing import Any, Final

from capfilt.simweb.grammar import RELATION_WORDS, SIZE_WORDS
from capfilt.simweb.scenes import BACKGROUNDS, COLOURS, SHAPES

PAD, UNK, CLS, SEP, MASK, DEC, ENC = range(7)
SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
# Every text of the web tokenises: words that no scene has fall into letters.
_LETTERS: Final = string.ascii_lowercase + string.digits
_PUNCTUATION: Final = ",-_/&?=%'+@<>[]{}|$^`\\"


def vocabulary() -> dict[str, int]:
    """Return token -> id: specials, the grammar's words, punctuation, letters, ##letters."""
    wordings = [*SIZE_WORDS.values(), *RELATION_WORDS.values()]
    words = [word for phrases in wordings for phrase in phrases for word in phrase.split()]
    plain = ["picture", "of", "a", "an", "and", "with", "on", "background", *words]
    tokens = [*SPECIAL, *plain, *COLOURS, *SHAPES, *BACKGROUNDS, *_PUNCTUATION, *_LETTERS]
    tokens += [f"##{letter}" for letter in _LETTERS]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def build_tokenizer(tokens: dict[str, int] | None = None) -> Any:  # untyped classes
    """Build a tokenizer: BERT's normalisation and splitting, [CLS] text [SEP].

    `tokens` are token -> id, by default this module's; special tokens that it lacks come after.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    known = vocabulary() if tokens is None else tokens
    tokenizer = Tokenizer(WordPiece(known, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(special, known[special]) for special in ("[CLS]", "[SEP]")],
    )
    from tokenizers.decoders import WordPiece as WordPieceDecoder

    tokenizer.decoder = WordPieceDecoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[DEC]",
        eos_token="[SEP]",
        additional_special_tokens=["[ENC]"],
    )


def save_processors(folder: Path, side: int) -> None:
    """Save the tokenizer and the preprocessing (squash to `side` pixels) beside the weights."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    build_tokenizer().save_pretrained(folder)
    size = {"height": side, "width": side}
    BlipImageProcessorPil(size=size).save_pretrained(folder)
