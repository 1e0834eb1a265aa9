"""MED, the multimodal mixture of encoder-decoder (arXiv 2201.12086, section 3.1).

One model, three uses of its text side: a text encoder (ITC), an image-grounded text encoder (ITM)
and an image-grounded text decoder (LM). Encoder and decoder share all parameters but those of
their self-attention (Table 3, "all except SA"): the very same tensors, in transformers' modules.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_file
from torch import nn
from torch.nn.functional import normalize
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel
from transformers.utils import logging as transformers_logging

from capfilt.errors import InputError, ModelError
from capfilt.models.compute.loading import load_checkpoint
from capfilt.models.recipe import ModelRef
from capfilt.train.model.towers import ImagesOfTexts, text_states, vision_states

Shared = Literal["equal", "captioner", "matcher"]
_WEIGHTS: Final = "med.safetensors"


class Med(nn.Module):
    """The model of all three losses; `Med.new`, `Med.load` and `Med.from_folders` make one.

    Texts are right-padded ids (R, L) whose first token says which use it is: [CLS] alone, [ENC]
    where it is matched with an image, [DEC] where it is written. The caller puts it there
    (`tokens.Texts.headed`).

    `temperature` is that of ITC, learnt with the rest. `recompute` trades time for memory
    (activation checkpointing of every layer). Tensors on the meta device make an empty model.
    """

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self.recompute = False
        matcher = BlipForImageTextRetrieval(self.config)
        self.vision_model, self.text_encoder = matcher.vision_model, matcher.text_encoder
        self.text_decoder = BlipTextLMHeadModel(self.config.text_config)
        self.vision_proj, self.text_proj = matcher.vision_proj, matcher.text_proj
        self.itm_head = matcher.itm_head
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self._share()

    @classmethod
    def new(
        cls,
        config: BlipConfig,
        seed: int,
        *,
        vision_std: float = 0.02,
        sines: bool = True,
        cosines: bool = True,
    ) -> "Med":
        """Return an untrained model, a function of `config` and `seed`.

        Three departures from transformers' initialisation, all switchable, all needed where no
        pre-trained image encoder is at hand (BLIP starts from one of ImageNet):

        - image weights start with deviation `vision_std`; transformers' 1e-10 starts an image
          encoder at zero, which learns very late;
        - with `sines`, image positions start as sines of row and column, of unit amplitude.
          Positions near zero are drowned by what a patch shows, and which of two things is the
          left one is then learnt very late, if at all;
        - with `cosines`, patches are looked at through the lowest cosines of each colour, those
          above the mean twelvefold (`patch_cosines`): random filters see little but the mean.

        Raises:
            InputError: `sines` with a width that is no multiple of 4.
        """
        config = copy.deepcopy(config)
        config.vision_config.initializer_range = vision_std
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(config)
        if cosines:
            filters = made.vision_model.embeddings.patch_embedding.weight
            with torch.no_grad():
                filters[:] = patch_cosines(filters)
        if sines:
            positions = made.vision_model.embeddings.position_embedding
            side = math.isqrt(positions.shape[1] - 1)
            with torch.no_grad():
                positions[:, 1:] = position_sines(side, positions.shape[2])
        return made

    @classmethod
    def load(cls, folder: Path) -> "Med":
        """Return what `save` wrote.

        Raises:
            ModelError: a file is missing, unreadable, or does not hold all weights.
        """
        for name in ("config.json", _WEIGHTS):
            if not (folder / name).is_file():  # transformers would look for it elsewhere first
                raise ModelError(f"{folder} is not a MED that capfilt saved: it has no {name}")
        try:
            made = cls(BlipConfig.from_pretrained(folder, local_files_only=True))
            load_model(made, folder / _WEIGHTS)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{folder} is not a MED that capfilt saved: {error}") from error
        return made

    @classmethod
    def from_folders(
        cls,
        captioner: Path | None,
        matcher: Path | None,
        *,
        shared: Shared = "equal",
        seed: int = 0,
    ) -> "Med":
        """Return a model of a captioner and a matcher as transformers stores them.

        Both have image encoder, embeddings, cross-attention and feed-forward. Exports of one MED
        agree on them; fine-tuned apart they do not, and `shared` must then say whose to take.
        Where one is None, its self-attention starts as the other's, and heads that no one has
        start at random by `seed`: enough to go on training the kind that was given.

        Raises:
            ModelError: weights are missing, architectures differ, or shared weights differ.
            InputError: neither folder is given.
        """
        if captioner is None and matcher is None:
            raise InputError("give the folder of a captioner, of a matcher, or both")
        writer = None if captioner is None else _opened(BlipForConditionalGeneration, captioner)
        judge = None if matcher is None else _opened(BlipForImageTextRetrieval, matcher)
        if writer is not None and judge is not None and shared == "equal":
            _check_equal(writer, judge, f"{captioner} and {matcher}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(next(given.config for given in (writer, judge) if given is not None))
        try:
            made._take(writer, judge, judge_last=shared == "matcher")
        except RuntimeError as error:
            raise ModelError(f"{captioner} and {matcher} do not fit together: {error}") from error
        return made

    # The uses

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return image states (B, N, D) of normalised pixels (B, 3, side, side)."""
        return vision_states(self.vision_model, pixels, self.recompute)

    def encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return states (R, L, D) of texts alone; [CLS] at 0, mask (R, L) true at tokens."""
        return text_states(self.text_encoder, ids, mask, None, self.recompute)

    def image_features(self, states: torch.Tensor) -> torch.Tensor:
        """Return ITC features (B, d), L2-normalised, of image states (B, N, D)."""
        return normalize(self.vision_proj(states[:, 0]), dim=-1)

    def text_features(self, states: torch.Tensor) -> torch.Tensor:
        """Return ITC features (R, d), L2-normalised, of `encode_text`'s states (R, L, D)."""
        return normalize(self.text_proj(states[:, 0]), dim=-1)

    def match(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        states: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ITM logits (R, 2), [no match, match]; [ENC] at 0, mask (R, L) true at tokens.

        Text r looks at image `rows[r]` of states (B, N, D); without `rows`, R is a multiple of B
        and the texts of an image stand side by side. An image's keys and values are projected
        once, however many texts look at it.
        """
        if rows is None:
            _check_fold(len(ids), len(states))
        looking = ImagesOfTexts(states, rows)
        seen = text_states(self.text_encoder, ids, mask, looking, self.recompute)
        logits: torch.Tensor = self.itm_head(seen[:, 0])
        return logits

    def decode_states(
        self, ids: torch.Tensor, states: torch.Tensor, captions_per_image: int = 1
    ) -> torch.Tensor:
        """Return the decoder's states (B * K, L, D); `decode` without its last projection.

        Raises:
            InputError: `ids` are not `captions_per_image` texts an image.
        """
        if len(ids) != len(states) * captions_per_image:
            raise InputError(
                f"{len(ids)} captions are not {captions_per_image} for each of {len(states)} images"
            )
        looking = ImagesOfTexts(states)
        return text_states(self.text_decoder.bert, ids, None, looking, self.recompute)

    def vocabulary_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits (..., V) of decoder states (..., D)."""
        logits: torch.Tensor = self.text_decoder.cls(states)
        return logits

    def decode(
        self, ids: torch.Tensor, states: torch.Tensor, captions_per_image: int = 1
    ) -> torch.Tensor:
        """Return logits (B * K, L, V) of the token after each; [DEC] at 0, right-padded.

        ids (B * K, L): the K captions of an image stand side by side. They are one long query of
        cross-attention, so image states (B, N, D) are neither copied nor projected K times. There
        is no mask, since a token sees those before it and padding comes after.
        """
        return self.vocabulary_logits(self.decode_states(ids, states, captions_per_image))

    def captioner_parameters(self) -> list[nn.Parameter]:
        """Return what LM trains: the rest gets no gradient from it."""
        return _unique(self.vision_model, self.text_decoder)

    def matcher_parameters(self) -> list[nn.Parameter]:
        """Return what ITC and ITM train, the temperature last."""
        heads = (self.vision_proj, self.text_proj, self.itm_head)
        return [*_unique(self.vision_model, self.text_encoder, *heads), self.temperature]

    def clamp_temperature(self, low: float, high: float) -> None:
        """Bring the learnt temperature back into its range; before each step."""
        with torch.no_grad():
            self.temperature.clamp_(low, high)

    def resize(self, side: int) -> None:
        """Take images of another side from now on: positions are interpolated (bicubic).

        BLIP pre-trains at 224 pixels and fine-tunes at 384 (section 4.1).

        Raises:
            InputError: `side` is no multiple of the patch size.
        """
        embeddings = self.vision_model.embeddings
        patch, width = embeddings.patch_size, embeddings.embed_dim
        if side < patch or side % patch:
            raise InputError(f"{side} pixels are no multiple of the patch of {patch} pixels")
        count = (side // patch) ** 2
        old = embeddings.position_embedding
        with torch.no_grad():
            fresh = embeddings.interpolate_pos_encoding(
                old.new_empty(1, count + 1, width), side, side
            )
            embeddings.position_embedding = nn.Parameter(fresh.detach().clone())
        embeddings.image_size = self.config.vision_config.image_size = side
        embeddings.num_patches, embeddings.num_positions = count, count + 1

    # Folders

    def save(self, folder: Path) -> None:
        """Write all weights, fp32, each once, and the configuration, for `load`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        save_file(_distinct(self.state_dict()), folder / _WEIGHTS)

    def export_captioner(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a `BlipForConditionalGeneration` folder; tokenizer and preprocessing not included.

        `dtype` is that of the file; the configuration says float32, so that it loads as that:
        half precision is for the disk. Nothing is atomic here: write to a private folder.
        """
        shell = _shell(BlipForConditionalGeneration, self.config)
        shell.vision_model, shell.text_decoder = self.vision_model, self.text_decoder
        _write(shell, folder, dtype)

    def export_matcher(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a `BlipForImageTextRetrieval` folder; see `export_captioner`."""
        shell = _shell(BlipForImageTextRetrieval, self.config)
        for name in ("vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head"):
            setattr(shell, name, getattr(self, name))
        _write(shell, folder, dtype)

    def _share(self) -> None:
        """Make the decoder use the encoder's tensors for all but self-attention."""
        bert, encoder = self.text_decoder.bert, self.text_encoder
        bert.embeddings = encoder.embeddings
        for own, other in zip(bert.encoder.layer, encoder.encoder.layer, strict=True):
            own.crossattention = other.crossattention
            own.intermediate, own.output = other.intermediate, other.output
        predictions = self.text_decoder.cls.predictions
        predictions.decoder.weight = encoder.embeddings.word_embeddings.weight
        predictions.decoder.bias = predictions.bias

    def _take(self, writer: Any, judge: Any, judge_last: bool) -> None:
        """Copy weights; of what both have, those copied last stay."""
        first, last = (writer, judge) if judge_last else (judge, writer)
        for source in (first, last):
            if source is None:
                continue
            text = source.text_decoder.bert if source is writer else source.text_encoder
            self.vision_model.load_state_dict(source.vision_model.state_dict())
            for tower in (self.text_encoder, self.text_decoder.bert):
                tower.load_state_dict(text.state_dict())
        for tower, source in ((self.text_decoder, writer), (self.text_encoder, judge)):
            if source is not None:
                _take_own(tower, source)
        if writer is not None:
            head = writer.text_decoder.cls.predictions
            predictions = self.text_decoder.cls.predictions
            predictions.transform.load_state_dict(head.transform.state_dict())
            predictions.bias.data.copy_(head.bias.data)
        for name in ("vision_proj", "text_proj", "itm_head") if judge is not None else ():
            getattr(self, name).load_state_dict(getattr(judge, name).state_dict())


def position_sines(side: int, width: int) -> torch.Tensor:
    """Return (1, side * side, width) sines and cosines of row and column, of unit amplitude.

    Raises:
        InputError: `width` is no multiple of 4.
    """
    if width % 4:
        raise InputError(f"positions of width {width} cannot be halved twice")
    quarter = width // 4
    waves = 0.9 * math.pi * torch.logspace(0.0, -1.3, quarter)
    angles = 2.0 * torch.linspace(0.0, 1.0, side)[:, None] * waves
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line[:, None].expand(side, side, width // 2)
    columns = line[None, :].expand(side, side, width // 2)
    return torch.cat([rows, columns], dim=2).reshape(1, side * side, width)


def patch_cosines(filters: torch.Tensor, gain: float = 12.0) -> torch.Tensor:
    """Return filters (W, 3, P, P) for patches of P × P pixels: cosines, the lowest first.

    Each is a product of two cosines (DCT-II) in luminance or one of two differences of colour. The
    first three give the mean colour, the others are `gain` times as large, since edges vary less
    than areas do. Where W is more than 3 P², the rest stays as it is in `filters`.
    """
    width, _, patch, _ = filters.shape
    place = (torch.arange(patch) + 0.5) * math.pi / patch
    waves = torch.cos(torch.arange(patch)[:, None] * place) * math.sqrt(2.0 / patch)
    waves[0] /= math.sqrt(2.0)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
    colours /= colours.norm(dim=1, keepdim=True)
    pairs = [(u, v) for u in range(patch) for v in range(patch)]
    pairs.sort(key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))
    made = filters.detach().clone()
    for number in range(min(width, 3 * patch * patch)):
        u, v = pairs[number // 3]
        height = (1.0 if u == v == 0 else gain) / patch
        made[number] = height * colours[number % 3, :, None, None] * torch.outer(waves[u], waves[v])
    return made


def _distinct(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return each tensor once, under the first of its names, sorted.

    safetensors' own `save_model` writes down the other names too, in another order each time: equal
    weights would be other files, and a fine-tuning that goes on from them another training.
    """
    kept: dict[int, str] = {}
    for name in sorted(state):
        kept.setdefault(state[name].data_ptr(), name)
    return {name: state[name].contiguous() for name in kept.values()}


def _unique(*modules: nn.Module) -> list[nn.Parameter]:
    return list(nn.ModuleList(modules).parameters())


def _take_own(tower: Any, source: Any) -> None:
    """Copy the self-attention of every layer, which encoder and decoder have each for itself."""
    layers = _layers(tower)
    for own, other in zip(layers, _layers(_text_of(source)), strict=True):
        own.attention.load_state_dict(other.attention.state_dict())


def _text_of(model: Any) -> Any:
    return model.text_encoder if hasattr(model, "text_encoder") else model.text_decoder


def _layers(tower: Any) -> Any:
    return getattr(tower, "bert", tower).encoder.layer


def _check_fold(texts: int, images: int) -> None:
    if texts % images:
        raise InputError(f"{texts} texts cannot be shared equally by {images} images; give rows")


def _check_equal(writer: Any, judge: Any, told: str) -> None:
    """Refuse two folders whose common weights differ."""
    ours = {**_named(writer.vision_model, "vision."), **_named(writer.text_decoder.bert, "text.")}
    theirs = {**_named(judge.vision_model, "vision."), **_named(judge.text_encoder, "text.")}
    for name, weight in ours.items():
        if ".attention." in name:
            continue
        if name not in theirs or not torch.equal(weight, theirs[name]):
            raise ModelError(
                f"{told} do not share {name!r}, so they are not exports of one MED; "
                "say whose shared weights to take (captioner or matcher)"
            )


def _named(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in module.state_dict().items()}


def _opened(kind: Any, folder: Path) -> Any:
    ref = ModelRef(digest="", name=str(folder), path=str(folder))
    return load_checkpoint(kind, ref, "cpu", "fp32")


def _shell(kind: Any, config: BlipConfig) -> Any:
    """Return a model without weights of its own, to put ours into."""
    with torch.device("meta"):
        return kind(copy.deepcopy(config))


def _write(shell: Any, folder: Path, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()  # the training has its own
    copy.deepcopy(shell).to(device="cpu", dtype=dtype).save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
