"""What a model run is, apart from the model: frozen, hashable, and importable without torch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from capfilt.errors import InputError
from capfilt.fingerprint import NOT_IDENTITY, PROVENANCE
from capfilt.option import DECODING, MODELS, REQUIRED, check_options, option

if TYPE_CHECKING:
    from capfilt.models.protocols import Matcher

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PRECISION_HELP: Final = (
    "Models' arithmetic: fp32; tf32, bf16 or fp16 on a GPU; bf16 on a CPU with units"
)
TrainingPrecision = Literal["fp32", "bf16"]  # arithmetic, or autocast
_COMMIT_SHOWN: Final = 7  # digits, as git and the hub show them


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A checkpoint. Its identity is the digest of its files; where they lie is not.

    `name` is what the user gave (a folder, a hub name with or without a revision, `embedded`),
    `path` the folder that it resolved to, `digest` the SHA-256 over the names and contents of its
    files. `commit` is what a hub's revision resolved to. `adapter` is the folder of an adapter that
    is merged into the weights of `path` when they are loaded, and `base` says what those are.
    """

    digest: str
    name: str = field(metadata=PROVENANCE)
    path: str = field(metadata=NOT_IDENTITY)
    commit: str | None = field(default=None, metadata=PROVENANCE)
    adapter: str | None = field(default=None, metadata=NOT_IDENTITY)
    base: str | None = field(default=None, metadata=PROVENANCE)

    @property
    def has_files(self) -> bool:
        """Whether there is a checkpoint at all; see `NO_CHECKPOINT`."""
        return bool(self.path)

    @property
    def described(self) -> str:
        """The model for people: `org/name@abc1234` where it came from a hub, else its name."""
        return described(self.name, self.commit, self.base)


# The model of a captioner or matcher of one's own that has no checkpoint.
NO_CHECKPOINT: Final = ModelRef(digest="", name="no checkpoint", path="")


def described(name: str, commit: str | None, base: str | None) -> str:
    """Return what people call a model; see `ModelRef`."""
    if commit is not None:
        name = f"{name.partition('@')[0]}@{commit[:_COMMIT_SHOWN]}"
    return name if base is None else f"{name} on {base}"


@dataclass(frozen=True, slots=True)
class Nucleus:
    """Nucleus sampling (Holtzman et al. 2019), with BLIP's figures as defaults.

    At each step the logits pass, in this order, repetition penalty, minimum length, temperature,
    top_k, top_p, as in transformers. `top_k` 0 switches it off; 50 is what BLIP's authors ran
    with, since it was their library's default.
    """

    label = "nucleus"

    top_p: float = option(
        0.9,
        "Sample from the likeliest tokens that add up to this probability",
        panel=DECODING,
        above=0,
        at_most=1,
    )
    top_k: int = option(
        50, "Sample from so many likeliest tokens at most; 0: no limit", panel=DECODING, at_least=0
    )
    temperature: float = option(
        1.0, "Divide the logits by this before sampling", panel=DECODING, above=0
    )
    repetition_penalty: float = option(
        1.1,
        "Penalty on tokens that the caption has already; 1 is none",
        panel=DECODING,
        above=0,
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True)
class Beam:
    """Beam search; the K best beams are the K captions. BLIP compares with 3 beams (Table 2)."""

    label = "beams"

    num_beams: int = option(
        3,
        "Search with so many beams, instead of nucleus sampling",
        flag="beams",
        panel=DECODING,
        shown="",
        at_least=1,
    )
    repetition_penalty: float = option(
        1.0,
        "Penalty on tokens that the caption has already; 1 is none",
        panel=DECODING,
        above=0,
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Caption lengths in tokens, the prompt and its start token included."""

    min_length: int = option(
        5, "Least tokens of a caption, with the prompt", panel=DECODING, at_least=0
    )
    max_length: int = option(
        20, "Most tokens of a caption, with the prompt", panel=DECODING, at_least=0
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.min_length > self.max_length:
            raise InputError(f"lengths {self.min_length} to {self.max_length} are not a range")


DEFAULT_PROMPT: Final = "a picture of "


def _captioner(name: str) -> ModelRef:
    from capfilt.models.checkpoints import resolve_model

    return resolve_model(name, "captioner")


def _matcher(name: str) -> ModelRef:
    from capfilt.models.checkpoints import resolve_model

    return resolve_model(name, "matcher")


@dataclass(frozen=True)
class CaptionerRecipe:
    """What a captioner writes: a function of these fields, an image and its key.

    `lengths` count tokens with the prompt. Two runs with equal fields write equal texts.
    """

    model: ModelRef = option(
        REQUIRED,
        "Folder, hub name (NAME or NAME@REVISION), 'embedded', or FILE.py:NAME",
        flag="captioner",
        panel=MODELS,
        given_as=str,
        shown="embedded",
        read=_captioner,
    )
    num_captions: int = option(1, "Captions for each image", panel=DECODING, at_least=1)
    decoding: Nucleus | Beam = Nucleus()
    lengths: Lengths = Lengths()
    prompt: str = option(
        DEFAULT_PROMPT,
        "Words that captions begin with; for InstructBLIP, the instruction",
        panel=DECODING,
        shown=repr(DEFAULT_PROMPT),
    )
    seed: int = option(0, "Seed of the sampling noise", panel=DECODING)
    precision: Precision = option("fp32", PRECISION_HELP, panel=MODELS)

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        check_options(self)
        if isinstance(self.decoding, Beam) and self.num_captions > self.decoding.num_beams:
            raise InputError(
                f"{self.num_captions} captions need as many beams; num_beams is "
                f"{self.decoding.num_beams}"
            )


@dataclass(frozen=True)
class FilterRecipe:
    """The filter's recipe; it becomes the two match stages. `matcher` may be one's own."""

    model: ModelRef = option(
        REQUIRED,
        "Folder, hub name (NAME or NAME@REVISION), 'embedded', or FILE.py:NAME",
        flag="matcher",
        panel=MODELS,
        given_as=str,
        shown="embedded",
        read=_matcher,
    )
    itm_token: Literal["enc", "cls"] = option(
        "enc", "Token at position 0 for ITM: enc, as BLIP was trained, or cls", panel=MODELS
    )
    precision: Precision = option("fp32", PRECISION_HELP, panel=MODELS)

    def __post_init__(self) -> None:
        """Check the words."""
        check_options(self)

    def matcher(self, device: str) -> "Matcher":
        """Load the checkpoint `model` as a matcher; a matcher of one's own overrides this."""
        from capfilt.models.loaders import open_matcher

        return open_matcher(self.model, self.itm_token, device, self.precision)


@dataclass(frozen=True, slots=True)
class ScorerRecipe:
    """The recipe of a second model whose similarities a policy looks at; two stages too."""

    model: ModelRef = option(
        REQUIRED,
        "A second model whose similarity policies rank by; usually a CLIP",
        flag="scorer",
        panel=MODELS,
        given_as=str,
        read=_matcher,
    )
    precision: Precision = option("fp32", PRECISION_HELP, panel=MODELS)

    def __post_init__(self) -> None:
        """Check the words."""
        check_options(self)
