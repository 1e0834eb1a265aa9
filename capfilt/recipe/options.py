"""From options to a round: what is given overrides the pipeline's recipe."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from capfilt.errors import InputError
from capfilt.flags import Flag, check_names, constructed, flags_of, replaced
from capfilt.models.checkpoints import EMBEDDED, resolve_model, share_weights
from capfilt.models.families import ModelKind, model_kind
from capfilt.models.recipe import Beam, FilterRecipe, Nucleus, ScorerRecipe
from capfilt.models.vocabulary import check_encoder_token
from capfilt.option import MODELS, POLICY
from capfilt.recipe.pipeline_file import load_pipeline
from capfilt.recipe.round import Round
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.policies.datacomp import BasicFilter
from capfilt.stages.policies.own import TextPolicy
from capfilt.stages.policies.presets import POLICIES, Policy
from capfilt.usercode import is_code, named_recipe

# Flags that choose a recipe, and set no field of one.
_PIPELINE: Final = Flag(
    "pipeline", str, "A file with ROUND = Round(…), or the name of a shipped one", MODELS
)
_POLICY: Final = Flag(
    "policy",
    str,
    f"Which texts are kept: {', '.join(POLICIES)} (raw uses no model), or FILE.py:NAME of your own "
    "[default: blip]",
    POLICY,
)


def round_flags() -> dict[str, Flag]:
    """Return every flag of a round, by name."""
    return {flag.name: flag for flag in (_PIPELINE, _POLICY)} | flags_of(Round)


class RoundOptions(Mapping[str, object]):
    """Options of a round by the names of their flags, as keywords: `RoundOptions(top_p=0.8)`.

    None is an option that was not given. `capfilt run --help` lists them.

    Raises:
        InputError: there is no option of that name.
    """

    def __init__(self, **given: object) -> None:
        check_names(given, round_flags())
        self._given = {name: value for name, value in given.items() if value is not None}

    @classmethod
    def among(cls, given: Mapping[str, object]) -> "RoundOptions":
        """Take those of these flags that a round has."""
        names = round_flags()
        return cls(**{name: value for name, value in given.items() if name in names})

    def __getitem__(self, name: str) -> object:
        return self._given[name]

    def __iter__(self) -> Any:  # an iterator of names
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def build_round(options: RoundOptions) -> Round:
    """Return the round that the options describe.

    Raises:
        InputError: the pipeline file, a model or a value is unusable; it says which.
    """
    pipeline = options.get("pipeline")
    base = load_pipeline(str(pipeline)) if pipeline else default_round()
    return changed_round(base, options)


def changed_round(base: Round, options: Mapping[str, object]) -> Round:
    """Return a round with what the options give changed, their pipeline aside; see above."""
    raw = options.get("policy", base.select.label) == "raw"
    if raw:
        _check_raw(options)
    own = ("captioner", "matcher", "policy")  # of code, these choose a recipe as a whole
    figures = {n: value for n, value in options.items() if n not in own or not is_code(value)}
    changed = replaced(_chosen(base, options), figures)
    _check_policy(changed.select, options)
    if raw:
        return _without_embeddings(changed, options)
    _check_scores(changed)
    return changed


def _chosen(base: Round, given: Mapping[str, Any]) -> Round:  # by flag
    """Return a round with the recipes that the flags choose, before their figures are set."""
    caption, matching = base.caption, base.matching
    if is_code(given.get("captioner")):
        caption = named_recipe(given["captioner"], Caption)
    if is_code(given.get("matcher")):
        matching = named_recipe(given["matcher"], FilterRecipe)
    caption = dataclasses.replace(caption, decoding=_decoding(caption.decoding, given))
    select = _policy(given["policy"]) if "policy" in given else base.select
    scorer = base.scorer
    if scorer is None and "scorer" in given:
        scorer = constructed(ScorerRecipe, given)
    return dataclasses.replace(
        base,
        caption=caption,
        matching=matching,
        select=_one_cut(select, given),
        scorer=scorer,
        dedup=_dedup(base.dedup, given),
    )


def _policy(name: str) -> Policy:
    if is_code(name):
        return named_recipe(name, TextPolicy)
    if name not in POLICIES:
        raise InputError(
            f"there is no policy {name!r}; give one of {', '.join(POLICIES)}, or FILE.py:NAME"
        )
    return POLICIES[name]()


def _decoding(base: Nucleus | Beam, given: Mapping[str, Any]) -> Nucleus | Beam:
    sampling = [name for name in ("top_p", "top_k", "temperature") if name in given]
    if not given.get("beams"):
        return Nucleus() if sampling and isinstance(base, Beam) else base
    if sampling:
        raise InputError(
            f"--beams and --{sampling[0].replace('_', '-')} exclude each other: beam search draws "
            "nothing"
        )
    return base if isinstance(base, Beam) else Beam()


def _one_cut(policy: Policy, given: Mapping[str, Any]) -> Policy:
    """Set the cut that was given, of a policy that takes either of two."""
    if isinstance(policy, BasicFilter) and "threshold" in given:
        return dataclasses.replace(policy, threshold=0.0, fraction=None)
    if isinstance(policy, BasicFilter) and "fraction" in given:
        return dataclasses.replace(policy, threshold=None, fraction=1.0)
    return policy


def _dedup(base: Dedup | None, given: Mapping[str, Any]) -> Dedup | None:
    figures = [name for name in ("dedup_radius", "dedup_similarity") if name in given]
    if given.get("dedup") == "none":
        if figures:
            raise InputError(
                f"--{figures[0].replace('_', '-')} has no effect with --dedup none; leave it out"
            )
        return None
    return Dedup() if base is None and ("dedup" in given or figures) else base


def _check_raw(options: Mapping[str, object]) -> None:
    """Refuse what needs a model in a round that uses none."""
    of_models = flags_of(Caption, FilterRecipe, ScorerRecipe)
    for name in options:
        if name in of_models:
            raise InputError(
                f"--{name.replace('_', '-')} has no effect with --policy raw, which uses no model; "
                "leave it out"
            )


def _without_embeddings(recipe: Round, options: Mapping[str, object]) -> Round:
    if recipe.dedup is None or "image_embedding" not in recipe.dedup.needs:
        return recipe
    if options.get("dedup") is not None:
        raise InputError(
            f"--dedup {options['dedup']} compares a model's embeddings, and --policy raw uses no "
            "model; give sha256, phash or none"
        )
    return dataclasses.replace(recipe, dedup=Dedup("sha256"))


def _check_policy(policy: Policy, options: Mapping[str, object]) -> None:
    """Refuse a figure that the policy does not have."""
    own, all_ = flags_of(type(policy)), flags_of(*typing.get_args(Policy))
    for name in options:
        if name in all_ and name not in own:
            raise InputError(
                f"--{name.replace('_', '-')} has no effect with the policy {policy.label!r}; "
                "leave it out"
            )


def exported_with(recipe: Round, given: Mapping[str, object]) -> Round:
    """Return a round with those figures changed that another export of it may have.

    Raises:
        InputError: the round's policy has no such figure, or a value is out of range.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    _check_policy(recipe.select, wanted)
    select = replaced(_one_cut(recipe.select, wanted), wanted)
    return dataclasses.replace(recipe, select=select, export=replaced(recipe.export, wanted))


def default_round() -> Round:
    """Return the round of the embedded models, which runs anywhere and needs no hub."""
    return Round(
        caption=Caption(resolve_model(EMBEDDED, "captioner")),
        matching=FilterRecipe(resolve_model(EMBEDDED, "matcher")),
    )


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


def _check_scores(recipe: Round) -> None:
    """Refuse a policy over scores that the round's models do not give."""
    needs = recipe.select.needs
    own = type(recipe.matching) is not FilterRecipe or not recipe.matching.model.has_files
    kind = None if own else model_kind(Path(recipe.matching.model.path), "matcher")
    if kind is ModelKind.BLIP_MATCHER and recipe.matching.itm_token == "enc":
        check_encoder_token(Path(recipe.matching.model.path), recipe.matching.model.name)
    if "similarity" in needs and recipe.scorer is None:
        raise InputError(
            "the policy ranks by the similarity of a second model; give --scorer, such as "
            "openai/clip-vit-large-patch14, or --score itm or itc to take the matcher's"
        )
    if "itm_score" in needs and kind is ModelKind.CLIP_MATCHER:
        raise InputError(
            f"{recipe.matching.model.name!r} is a CLIP, which has no ITM score; give a "
            "--policy over --score itc, or a BLIP as --matcher and the CLIP as --scorer"
        )
