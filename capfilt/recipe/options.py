"""From command-line options to a round: what is given overrides the pipeline's recipe."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar

from capfilt.errors import InputError
from capfilt.export import ExportConfig
from capfilt.export.instructions import load_instructions
from capfilt.models.checkpoints import EMBEDDED, resolve_model, share_weights
from capfilt.models.families import ModelKind, model_kind
from capfilt.models.recipe import Beam, Nucleus
from capfilt.recipe.round import Matching, Round, Scoring
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.download import Download
from capfilt.stages.policies.blip import Origins
from capfilt.stages.policies.presets import BasicFilter, Policy, PolicyName, preset
from capfilt.stages.policies.texts import Score

T = TypeVar("T")
_OF_MODELS = (
    *("captioner", "matcher", "scorer", "precision", "num_captions", "beams", "top_p", "top_k"),
    *("temperature", "repetition_penalty", "min_length", "max_length", "prompt", "seed"),
    "itm_token",
)
DedupMethod = Literal["none", "sha256", "phash", "embedding", "both"]


@dataclass(frozen=True, slots=True)
class RoundOptions:
    """Options of `capfilt run`, each None where it was not given. See `capfilt run --help`."""

    pipeline: str | None = None
    captioner: str | None = None
    matcher: str | None = None
    num_captions: int | None = None
    beams: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    prompt: str | None = None
    seed: int | None = None
    itm_token: Literal["enc", "cls"] | None = None
    precision: Literal["fp32", "bf16"] | None = None
    dedup: DedupMethod | None = None
    dedup_radius: int | None = None
    dedup_similarity: float | None = None
    policy: PolicyName | None = None
    scorer: str | None = None
    score: Score | None = None
    threshold: float | None = None
    origins: Origins | None = None
    fraction: float | None = None
    keep_texts: int | None = None
    image_size: int | None = None
    resize_mode: str | None = None
    min_image_size: int | None = None
    max_aspect_ratio: float | None = None
    allow_private_hosts: bool | None = None
    timeout: float | None = None
    total_timeout: float | None = None
    threads: int | None = None
    shard_rows: int | None = None
    file_mb: int | None = None
    instructions: str | None = None


def build_round(options: RoundOptions) -> Round:
    """Return the round that the options describe.

    Raises:
        InputError: the pipeline file, a model or a value is unusable; it says which.
    """
    base = load_pipeline(options.pipeline) if options.pipeline else default_round()
    return changed_round(base, options)


def changed_round(base: Round, options: RoundOptions) -> Round:
    """Return a round with what the options give changed, their pipeline aside; see above."""
    changed = _changed(
        base,
        caption=_caption(base.caption, options),
        matching=_matching(base.matching, options),
        fetch=_fetch(base, options),
        scorer=_scorer(base.scorer, options),
        select=_select(base.select, options),
        export=export_with(base.export, options.file_mb, options.instructions),
        shard_rows=options.shard_rows,
    )
    recipe = dataclasses.replace(changed, dedup=_dedup(base.dedup, options))
    if recipe.raw:
        return _raw(recipe, options)
    _check_scores(recipe)
    return recipe


def export_with(base: ExportConfig, file_mb: int | None, instructions: str | None) -> ExportConfig:
    """Return an export's configuration with what is given and not None changed.

    Raises:
        InputError: a size is out of its range, or the instructions cannot be read.
    """
    return _changed(
        base,
        target_bytes=None if file_mb is None else file_mb * 1_000_000,
        instructions=load_instructions(instructions) if instructions else None,
    )


def _raw(recipe: Round, options: RoundOptions) -> Round:
    """Return a round without models: what needs one is refused where it was asked for."""
    given = [name for name in _OF_MODELS if getattr(options, name) is not None]
    if given:
        option = given[0].replace("_", "-")
        raise InputError(f"--{option} is nothing to the policy 'raw', which asks no model")
    if recipe.dedup is None or "image_embedding" not in recipe.dedup.needs:
        return recipe
    if options.dedup is not None:
        raise InputError(
            f"--dedup {options.dedup} compares a model's embeddings, and the policy 'raw' asks no "
            "model; take sha256, phash or none"
        )
    return dataclasses.replace(recipe, dedup=Dedup("sha256"))


def default_round() -> Round:
    """Return the round of the embedded models, which runs anywhere and needs no hub."""
    return Round(
        caption=Caption(resolve_model(EMBEDDED, "captioner")),
        matching=Matching(resolve_model(EMBEDDED, "matcher")),
    )


def load_pipeline(path: str) -> Round:
    """Run a pipeline file and return its `ROUND`.

    Raises:
        InputError: there is no such file, it fails, or it defines no `ROUND`.
    """
    recipe = getattr(run_pipeline(path), "ROUND", None)
    if not isinstance(recipe, Round):
        raise InputError(f"{path} defines no ROUND = Round(…); see pipelines/ for some to copy")
    return recipe


def run_pipeline(path: str) -> ModuleType:
    """Run a pipeline file and return what it defines.

    Raises:
        InputError: there is no such file, or it fails.
    """
    file = Path(path)
    spec = importlib.util.spec_from_file_location("capfilt_pipeline", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{path} is no pipeline file; see pipelines/ for some to copy")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, NameError, TypeError, AttributeError, ImportError) as error:
        raise InputError(f"{path} fails: {type(error).__name__}: {error}") from error
    return module


def warnings_of(recipe: Round) -> list[str]:
    """Return what a user should know before a long run with this recipe."""
    found = []
    if recipe.scorer is not None and "similarity" not in recipe.select.needs:
        found.append(
            "the policy does not look at the scorer's similarities; it is run all the same"
        )
    if not recipe.raw and share_weights(recipe.caption.model, recipe.matching.model):
        found.append(
            "captioner and filter share the same image encoder weights: a filter lets the mistakes "
            "of its own captioner pass (BLIP Table 4: 8 % instead of 25 % noise found). "
            "Fine-tune the two apart."
        )
    return found


def _caption(base: Caption, options: RoundOptions) -> Caption:
    return _changed(
        base,
        model=resolve_model(options.captioner, "captioner") if options.captioner else None,
        num_captions=options.num_captions,
        decoding=_decoding(base.decoding, options),
        lengths=_changed(
            base.lengths, min_length=options.min_length, max_length=options.max_length
        ),
        prompt=options.prompt,
        seed=options.seed,
        precision=options.precision,
    )


def _decoding(base: Nucleus | Beam, options: RoundOptions) -> Nucleus | Beam:
    sampling = {"top_p": options.top_p, "top_k": options.top_k, "temperature": options.temperature}
    if options.beams:
        given = [name for name, value in sampling.items() if value is not None]
        if given:
            raise InputError(
                f"--beams and --{given[0].replace('_', '-')} exclude each other: "
                "beam search draws nothing"
            )
        beam = base if isinstance(base, Beam) else Beam()
        return _changed(
            beam, num_beams=options.beams, repetition_penalty=options.repetition_penalty
        )
    if isinstance(base, Beam) and options.beams is None and set(sampling.values()) == {None}:
        return _changed(base, repetition_penalty=options.repetition_penalty)
    nucleus = base if isinstance(base, Nucleus) else Nucleus()
    return _changed(nucleus, **sampling, repetition_penalty=options.repetition_penalty)


def _matching(base: Matching, options: RoundOptions) -> Matching:
    return _changed(
        base,
        model=resolve_model(options.matcher, "matcher") if options.matcher else None,
        itm_token=options.itm_token,
        precision=options.precision,
    )


def _scorer(base: Scoring | None, options: RoundOptions) -> Scoring | None:
    if options.scorer is not None:
        model = resolve_model(options.scorer, "matcher")
        base = Scoring(model) if base is None else dataclasses.replace(base, model=model)
    return None if base is None else _changed(base, precision=options.precision)


def _select(base: Policy, options: RoundOptions) -> Policy:
    return with_options(
        preset(options.policy) if options.policy else base,
        threshold=options.threshold,
        origins=options.origins,
        fraction=options.fraction,
        keep=options.keep_texts,
        score=options.score,
    )


def with_options(policy: Policy, **given: object) -> Policy:
    """Return a policy with those of its fields replaced that are given and not None.

    Raises:
        InputError: it has no such field, or the value is out of range.
    """
    names = {field.name for field in dataclasses.fields(policy)}
    wanted = {name: value for name, value in given.items() if value is not None}
    for name in wanted.keys() - names:
        option = {"keep": "keep-texts"}.get(name, name)
        raise InputError(f"--{option} is nothing to the policy {policy.name!r}; leave it out")
    if isinstance(policy, BasicFilter) and wanted.get("threshold") is not None:
        policy = dataclasses.replace(policy, threshold=0.0, fraction=None)  # one cut for another
    elif isinstance(policy, BasicFilter) and wanted.get("fraction") is not None:
        policy = dataclasses.replace(policy, threshold=None, fraction=1.0)
    return _changed(policy, **wanted)


def _check_scores(recipe: Round) -> None:
    """Refuse a policy over scores that the round's models do not give."""
    needs = recipe.select.needs
    if "similarity" in needs and recipe.scorer is None:
        raise InputError(
            "the policy ranks by the similarity of a second model; give --scorer, such as "
            "openai/clip-vit-large-patch14, or --score itm or itc to take the matcher's"
        )
    if "itm_score" in needs:
        kind = model_kind(Path(recipe.matching.model.path), "matcher")
        if kind is ModelKind.CLIP_MATCHER:
            raise InputError(
                f"{recipe.matching.model.name!r} is a CLIP, which has no ITM score; give a "
                "--policy over --score itc, or a BLIP as --matcher and the CLIP as --scorer"
            )


def _fetch(base: Round, options: RoundOptions) -> Download:
    return _changed(
        base.fetch,
        resize=_changed(
            base.fetch.resize,
            image_size=options.image_size,
            resize_mode=options.resize_mode,
            min_image_size=options.min_image_size,
            max_aspect_ratio=options.max_aspect_ratio,
        ),
        allow_private_hosts=options.allow_private_hosts,
        timeout=options.timeout,
        total_timeout=options.total_timeout,
        threads=options.threads,
    )


def _dedup(base: Dedup | None, options: RoundOptions) -> Dedup | None:
    if options.dedup == "none":
        if options.dedup_radius is not None or options.dedup_similarity is not None:
            raise InputError(
                "--dedup none finds no duplicates; leave its radius and similarity out"
            )
        return None
    given: Mapping[str, object] = {
        "method": options.dedup,
        "radius": options.dedup_radius,
        "similarity": options.dedup_similarity,
    }
    if base is None and not any(value is not None for value in given.values()):
        return None
    return _changed(base or Dedup(), **given)


def _changed(base: T, **given: object) -> T:
    """Return the frozen dataclass `base` with those fields replaced that are not None."""
    kept = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(base, **kept)  # type: ignore[type-var]  # every caller has one
