"""Texts and identities as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import torch

from capfilt.errors import InputError, ModelError
from capfilt.models.compute.transfer import to_device
from capfilt.models.filter_text import normalise_for_filter

FILTER_TOKENS: Final = 35  # BLIP's longest text of pre-training and filter
CAPTION_TOKENS: Final = 40  # the longest caption of the authors' captioner


@dataclass(frozen=True, slots=True)
class Special:
    """Ids of the tokens that say what a text is used for (section 3.1)."""

    cls: int
    enc: int
    dec: int

    @classmethod
    def of(cls, tokenizer: Any, text_config: Any) -> "Special":  # untyped classes
        """Find them; released checkpoints have [ENC] in the model but not in the tokenizer.

        Raises:
            ModelError: there is no [ENC].
        """
        dec = int(text_config.bos_token_id)
        enc = tokenizer.get_vocab().get("[ENC]")
        if enc is None and text_config.vocab_size == dec + 2:  # [DEC] and [ENC] were appended
            enc = dec + 1
        if enc is None:
            raise ModelError("the tokenizer has no [ENC] token, which ITM begins with; add it")
        return cls(int(tokenizer.cls_token_id), int(enc), dec)


@dataclass(frozen=True, slots=True)
class Texts:
    """R right-padded texts: ids (R, L) int64 and mask (R, L) bool, true at tokens."""

    ids: torch.Tensor
    mask: torch.Tensor

    def headed(self, token: int) -> torch.Tensor:
        """Return the ids with `token` at position 0."""
        return torch.cat([torch.full_like(self.ids[:, :1], token), self.ids[:, 1:]], dim=1)

    def first(self, count: int) -> "Texts":
        """Return the first `count` texts."""
        return Texts(self.ids[:count], self.mask[:count])

    def to(self, device: torch.device | str) -> "Texts":
        """Return them, which are the host's, on a device."""
        return Texts(to_device(self.ids, device), to_device(self.mask, device))


def filter_texts(tokenizer: Any, texts: Sequence[str], longest: int = FILTER_TOKENS) -> Texts:
    """Tokenise as the filter sees texts: normalised, at most 35 tokens, [CLS] and [SEP] included.

    `longest` may be less, where long texts are noise.

    What normalisation leaves empty becomes [CLS] [SEP].
    """
    normalised = [normalise_for_filter(text) for text in texts]
    return _tokenised(tokenizer, normalised, min(longest, FILTER_TOKENS))


def caption_texts(
    tokenizer: Any, prompt: str, texts: Sequence[str], longest: int = CAPTION_TOKENS
) -> Texts:
    """Tokenise captions after the prompt, at most `longest` tokens, the last of them [SEP]."""
    return _tokenised(tokenizer, [prompt + text for text in texts], longest)


def prompt_tokens(tokenizer: Any, prompt: str, longest: int = CAPTION_TOKENS) -> int:
    """Return how many first tokens of a caption are given: the start token and the prompt.

    Raises:
        InputError: the prompt leaves no room for a caption.
    """
    count = 1 + len(tokenizer(prompt, add_special_tokens=False).input_ids)
    if count >= longest - 1:
        raise InputError(f"the prompt takes {count} of {longest} tokens; shorten it")
    return count


def pair_ids(keys: Sequence[str], texts: Sequence[str]) -> torch.Tensor:
    """Return the identities (B, 2) int64 of image keys and of their texts, for `positives`."""
    return torch.tensor([[_id(key), _id(text)] for key, text in zip(keys, texts, strict=True)])


def _id(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _tokenised(tokenizer: Any, texts: list[str], longest: int) -> Texts:
    encoded = tokenizer(
        texts,
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=longest,
        return_tensors="pt",
    )
    return Texts(encoded.input_ids, encoded.attention_mask.bool())
