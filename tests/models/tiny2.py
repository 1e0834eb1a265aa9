"""Small real checkpoints of BLIP-2, InstructBLIP and CLIP with random weights, saved whole."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from capfilt.models.protocols import Pixels
from tests.models.tiny import WORDS, save_tokenizer

SIDE = 32
QUERIES = 6
PAD, START, END, UNKNOWN, IMAGE = range(5)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
_TOKENS = dict.fromkeys([*SPECIAL, *WORDS, *map(str, range(30))])
VOCABULARY = {word: number for number, word in enumerate(_TOKENS)}
_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_VISION = {**_LAYERS, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8}
_QFORMER = {**_LAYERS, "num_attention_heads": 4, "vocab_size": 120, "max_position_embeddings": 48}
_ENDS = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
OPT = {
    "model_type": "opt",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **_ENDS,
}
T5 = {
    "model_type": "t5",
    "vocab_size": len(VOCABULARY),
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": PAD,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "eos_token_id": END,
}


def some_images(count: int, seed: int = 0, side: int = SIDE) -> list[Pixels]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def save_words(folder: Path, around: str) -> None:
    """Save a tokenizer of whole words; `around` says what stands around a text."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=around, special_tokens=[("<s>", START), ("</s>", END)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    ).save_pretrained(folder)


def save_blip2_captioner(folder: Path, text: dict[str, Any]) -> Path:
    config = Blip2Config(
        vision_config=_VISION,
        qformer_config=_QFORMER,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    _save(Blip2ForConditionalGeneration(config), folder)
    save_words(folder, "<s> $A" if text is OPT else "$A </s>")
    return folder


def save_instructblip(folder: Path, text: dict[str, Any]) -> Path:
    config = InstructBlipConfig(
        vision_config=_VISION,
        qformer_config=_QFORMER,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    _save(InstructBlipForConditionalGeneration(config), folder)
    save_words(folder, "<s> $A" if text is OPT else "$A </s>")
    save_tokenizer(folder / "qformer_tokenizer")
    return folder


def save_blip2_matcher(folder: Path) -> Path:
    config = Blip2Config(
        vision_config=_VISION,
        qformer_config={**_QFORMER, "use_qformer_text_input": True},
        text_config=OPT,
        num_query_tokens=QUERIES,
        image_text_hidden_size=16,
    )
    _save(Blip2ForImageTextRetrieval(config), folder)
    save_tokenizer(folder)
    return folder


def save_clip(folder: Path) -> Path:
    text = {**_LAYERS, "num_attention_heads": 4, "max_position_embeddings": 30, **_ENDS}
    text["vocab_size"] = len(VOCABULARY)
    config = CLIPConfig(vision_config=_VISION, text_config=text, projection_dim=16)
    _save(CLIPModel(config), folder, clip=True)
    save_words(folder, "<s> $A </s>")
    return folder


def _save(model: Any, folder: Path, clip: bool = False) -> None:
    torch.manual_seed(11)
    for parameter in model.parameters():  # larger than the usual 0.02: outputs must differ
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.tie_weights()
    model.save_pretrained(folder)
    if clip:
        size, crop = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
        CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(folder)
    else:
        BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def reference_pixels(folder: Path, images: list[Pixels], clip: bool = False) -> torch.Tensor:
    kind = CLIPImageProcessorPil if clip else BlipImageProcessorPil
    found = kind.from_pretrained(folder)([Image.fromarray(i) for i in images], return_tensors="pt")
    pixels: torch.Tensor = found.pixel_values
    return pixels
