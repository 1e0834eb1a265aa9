"""CapFilt with BLIP's released models: ViT-L captioner and filter, fine-tuned on COCO.

The checkpoints come from the hub, or from its cache with HF_HUB_OFFLINE=1; a folder does as well.
Figures of decoding and filtering are those of the paper and its repository (arXiv 2201.12086).
"""

from capfilt.models.checkpoints import resolve_model
from capfilt.models.recipe import FilterRecipe, Lengths, Nucleus
from capfilt.recipe.round import Round
from capfilt.stages.caption import Caption
from capfilt.stages.download import Download, Resize
from capfilt.stages.policies.blip import Select

ROUND = Round(
    fetch=Download(
        resize=Resize(image_size=384, resize_mode="keep_ratio", min_image_size=64),
        threads=64,
    ),
    caption=Caption(
        model=resolve_model("Salesforce/blip-image-captioning-large", "captioner"),
        num_captions=1,
        decoding=Nucleus(top_p=0.9),
        lengths=Lengths(min_length=5, max_length=20),
    ),
    matching=FilterRecipe(model=resolve_model("Salesforce/blip-itm-large-coco", "matcher")),
    select=Select(threshold=0.5),
    shard_rows=2000,
)
