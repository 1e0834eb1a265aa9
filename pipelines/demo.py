"""The round of the embedded models, spelt out: copy this file and change what you need."""

from capfilt.models.checkpoints import resolve_model
from capfilt.models.recipe import FilterRecipe, Lengths, Nucleus
from capfilt.recipe.round import Round
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.download import Download, Resize
from capfilt.stages.policies.blip import Select

ROUND = Round(
    fetch=Download(resize=Resize(image_size=256), allow_private_hosts=False),
    caption=Caption(
        model=resolve_model("embedded", "captioner"),
        num_captions=1,
        decoding=Nucleus(top_p=0.9, top_k=50, repetition_penalty=1.1),
        lengths=Lengths(min_length=5, max_length=20),
        prompt="a picture of ",
        seed=0,
    ),
    matching=FilterRecipe(model=resolve_model("embedded", "matcher")),
    dedup=Dedup(),
    select=Select(threshold=0.5),
    shard_rows=1000,
)
