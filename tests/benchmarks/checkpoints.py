"""Checkpoints of the published architectures with random weights: they cost what real ones do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capfilt.simweb.vocab import build_tokenizer

_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_VOCABULARY: Final = 30522  # of BERT; [DEC] and [ENC] come after it
_SIDE: Final = 384


@dataclass(frozen=True, slots=True)
class Architecture:
    """A published BLIP: width, layers and heads of its image tower (the text tower is BERT's)."""

    name: str
    vision_width: int
    vision_layers: int
    vision_heads: int

    @property
    def tokens(self) -> int:
        """States of an image: the patches of 16 pixels and the class token."""
        return (_SIDE // 16) ** 2 + 1

    @property
    def vision_flops(self) -> float:
        """Floating point operations of one image tower pass over one image."""
        width, n = self.vision_width, self.tokens
        products = 2.0 * n * 12 * width * width + 4.0 * n * n * width
        return self.vision_layers * products + 2.0 * (n - 1) * 768 * width


BASE: Final = Architecture("BLIP-base", 768, 12, 12)
LARGE: Final = Architecture("BLIP-large", 1024, 24, 16)


def save_pair(architecture: Architecture, folder: Path, seed: int = 0, device: str = "cpu") -> None:
    """Write folder/captioner and folder/matcher, each with tokenizer and preprocessing.

    Weights are drawn on `device`, which for the large ones is the quicker the better it is.
    """
    import torch
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    classes = {"captioner": BlipForConditionalGeneration, "matcher": BlipForImageTextRetrieval}
    for number, (role, model_class) in enumerate(classes.items()):
        torch.manual_seed(seed + number)
        with torch.device(device):
            model = model_class(configuration(architecture))
        model.save_pretrained(folder / role)
        save_processors(folder / role)


def configuration(architecture: Architecture) -> Any:  # transformers' configurations are untyped
    """Return transformers' configuration of an architecture."""
    from transformers import BlipConfig

    vision = {
        "hidden_size": architecture.vision_width,
        "intermediate_size": 4 * architecture.vision_width,
        "num_hidden_layers": architecture.vision_layers,
        "num_attention_heads": architecture.vision_heads,
        "image_size": _SIDE,
        # transformers' default of 1e-10 would make every image look the same.
        "initializer_range": 0.02,
    }
    text = {
        "vocab_size": _VOCABULARY + 2,
        "encoder_hidden_size": architecture.vision_width,
        "num_attention_heads": 12,  # transformers' default, 8, is no published BLIP's
        "bos_token_id": _VOCABULARY,
        "eos_token_id": 2,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    return BlipConfig(text_config=text, vision_config=vision)


def save_processors(folder: Path) -> None:
    """Write a tokenizer of words and the preprocessing beside a configuration."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = ["a", "picture", "of", *(f"w{i}" for i in range(_VOCABULARY))]
    tokens = {word: i for i, word in enumerate([*_SPECIAL, *words][:_VOCABULARY])}
    build_tokenizer(tokens).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": _SIDE, "width": _SIDE}).save_pretrained(folder)
