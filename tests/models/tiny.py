"""Small real BLIP checkpoints with random weights, saved as transformers saves them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
WORDS = "a picture of red green blue small large circle square left right the dog cat".split()
VOCAB = [
    *SPECIAL,
    *WORDS,
    *"abcdefghijklmnopqrstuvwxyz0123456789",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
]


def save_tokenizer(folder: Path) -> None:
    vocab = {word: number for number, word in enumerate(dict.fromkeys(VOCAB))}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[DEC]",
        eos_token="[SEP]",
        additional_special_tokens=["[ENC]"],
    ).save_pretrained(folder)


def config() -> BlipConfig:
    ids = {name: number for number, name in enumerate(SPECIAL)}
    text = {
        "vocab_size": len(dict.fromkeys(VOCAB)),
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "projection_dim": 16,
        "pad_token_id": ids["[PAD]"],
        "bos_token_id": ids["[DEC]"],
        "eos_token_id": ids["[SEP]"],
        "sep_token_id": ids["[SEP]"],
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 16,
    }
    return BlipConfig(
        text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16
    )


def save_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Save a random captioner and a random matcher; returns their folders."""
    folders = folder / "captioner", folder / "matcher"
    for place, kind in zip(
        folders, (BlipForConditionalGeneration, BlipForImageTextRetrieval), strict=True
    ):
        torch.manual_seed(seed)
        seed += 1
        model = kind(config())
        for parameter in model.parameters():  # larger than the usual 0.02: outputs must differ
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(place)
        save_tokenizer(place)
        BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(place)
    return folders
