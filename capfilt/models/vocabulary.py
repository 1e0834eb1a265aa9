"""Whether a checkpoint's tokenizer is the one that its weights were trained with.

A tokenizer of other ids loads without a word, and every caption and score is then of other words.
Never imports torch.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from capfilt.errors import ModelError
from capfilt.models.families import ModelKind, config_part, read_config, read_json

# A folder inside a checkpoint: InstructBLIP's second tokenizer.
QFORMER_TOKENIZER: Final = "qformer_tokenizer"
_FILES: Final = ("tokenizer.json", "vocab.txt", "vocab.json")
_COPY: Final = "copy the tokenizer of the checkpoint beside its weights"
# Where config.json does not say: the defaults of transformers' configurations.
_TEXT_SIZES: Final = {"blip": 30524, "clip": 49408}
_QFORMER_SIZE: Final = 30522
_BLIP_IDS: Final = {"bos_token_id": 30522, "sep_token_id": 102, "pad_token_id": 0}
_BLIP_TOKENS: Final = {
    "bos_token_id": ("[DEC]", "bos_token"),
    "sep_token_id": ("[SEP]", "sep_token"),
    "pad_token_id": ("[PAD]", "pad_token"),
}


def check_vocabularies(folder: Path, kind: ModelKind) -> None:
    """Check the tokenizers of a checkpoint as far as their files can be read without a library.

    Raises:
        ModelError: one is missing, or does not fit the weights.
    """
    check_vocabulary(folder, kind, vocabulary_of(folder))
    if kind is ModelKind.INSTRUCTBLIP_CAPTIONER:
        inner = folder / QFORMER_TOKENIZER
        if not inner.is_dir():
            raise ModelError(f"{folder} has no {QFORMER_TOKENIZER}; copy it beside the weights")
        size = config_part(read_config(folder), "qformer_config").get("vocab_size", _QFORMER_SIZE)
        _check_size(inner, vocabulary_of(inner), size)


def check_vocabulary(folder: Path, kind: ModelKind, vocabulary: Mapping[str, int] | None) -> None:
    """Check a checkpoint's tokenizer, given its words' ids; None: they are not known.

    Raises:
        ModelError: it does not fit the weights.
    """
    config = read_config(folder)
    text = config_part(config, "text_config")
    if kind is ModelKind.BLIP2_MATCHER:  # its texts go to the Q-Former
        size = config_part(config, "qformer_config").get("vocab_size", _QFORMER_SIZE)
    else:
        size = text.get("vocab_size", _TEXT_SIZES.get(kind.model_type))
    _check_size(folder, vocabulary, size)
    if vocabulary is not None and kind.model_type == "blip":
        _check_blip(folder, vocabulary, text)


def encoder_token(vocabulary: Mapping[str, int], text: Mapping[str, Any]) -> int | None:
    """Return the id of BLIP's [ENC], or None where there is none.

    Released checkpoints have it in the model but not in the tokenizer: [DEC] and [ENC] were
    appended, in this order.
    """
    if "[ENC]" in vocabulary:
        return int(vocabulary["[ENC]"])
    start = text.get("bos_token_id", _BLIP_IDS["bos_token_id"])
    if not isinstance(start, int):
        return None
    return start + 1 if text.get("vocab_size", _TEXT_SIZES["blip"]) == start + 2 else None


def check_encoder_token(folder: Path, name: str) -> None:
    """Refuse a BLIP matcher that has no [ENC] to put at position 0.

    Raises:
        ModelError: it has none.
    """
    vocabulary = vocabulary_of(folder)
    text = config_part(read_config(folder), "text_config")
    if vocabulary is not None and encoder_token(vocabulary, text) is None:
        raise no_encoder_token(name)


def no_encoder_token(name: str) -> ModelError:
    """Return the error of a matcher without [ENC]."""
    return ModelError(
        f"{name!r} has no [ENC] token in its tokenizer; add it, or score with --itm-token cls"
    )


def vocabulary_of(folder: Path) -> dict[str, int] | None:
    """Return each token's id, or None where only a library can read the tokenizer.

    Raises:
        ModelError: there is no tokenizer, or it cannot be read.
    """
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        if any(folder.glob("*.model")):  # SentencePiece
            return None
        raise ModelError(f"{folder} has no tokenizer ({', '.join(_FILES)}, *.model); {_COPY}")
    try:
        found = {**_words(file), **_added(folder)}
        return {str(token): int(number) for token, number in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} cannot be read ({type(error).__name__}); {_COPY}") from error


def _words(file: Path) -> dict[str, int]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".txt":
        return _numbered(text.removesuffix("\n").split("\n"))
    found: dict[str, Any] = json.loads(text)
    if file.name == "vocab.json":
        return found
    vocabulary = found["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        vocabulary = _numbered(pair[0] for pair in vocabulary)
    return {**vocabulary, **{each["content"]: each["id"] for each in found["added_tokens"] or []}}


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token.rstrip("\r"): number for number, token in enumerate(tokens)}


def _added(folder: Path) -> dict[str, int]:
    """Return the tokens that files beside an old vocabulary add to it."""
    if (folder / "tokenizer.json").is_file():
        return {}
    found: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        found |= read_json(folder / "added_tokens.json", _COPY)
    decoder = _settings(folder).get("added_tokens_decoder") or {}
    return found | {each["content"]: int(number) for number, each in decoder.items()}


def _settings(folder: Path) -> dict[str, Any]:  # JSON
    file = folder / "tokenizer_config.json"
    return read_json(file, _COPY) if file.is_file() else {}


def _check_size(folder: Path, vocabulary: Mapping[str, int] | None, size: object) -> None:
    """Refuse ids beyond the embedding: they would end the run at the first such word."""
    if vocabulary is None or not isinstance(size, int):
        return
    # The placeholder of an image is replaced before the embedding; newer releases add it.
    beyond = [token for token, at in vocabulary.items() if at >= size and token != "<image>"]
    if beyond:
        raise ModelError(
            f"{folder} has a tokenizer of other weights: {len(beyond):,} tokens ({beyond[0]!r}, …) "
            f"lie beyond the {size:,} that the model knows; {_COPY}"
        )


def _check_blip(folder: Path, vocabulary: Mapping[str, int], text: Mapping[str, Any]) -> None:
    """Check that start, end and padding of the weights are those of the tokenizer."""
    tokens = {number: token for token, number in vocabulary.items()}
    settings = _settings(folder)
    for name, (usual, setting) in _BLIP_TOKENS.items():
        number = text.get(name, _BLIP_IDS[name])
        appended = name == "bos_token_id" and number == max(tokens, default=-1) + 1
        found = tokens.get(number) if isinstance(number, int) else None
        if appended or (found and found in (usual, _content(settings.get(setting)))):
            continue
        raise ModelError(
            f"{folder} has a tokenizer of other weights: {usual} is {number} in config.json, and "
            f"{_told(found)} in the tokenizer; {_COPY}"
        )


def _told(token: str | None) -> str:
    return "no token" if token is None else f"{token!r} has that number"


def _content(token: Any) -> str | None:  # a JSON string, or an object that holds it
    found: str | None = token.get("content") if isinstance(token, dict) else token
    return found
