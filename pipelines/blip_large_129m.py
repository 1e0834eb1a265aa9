"""BLIP-large from fresh weights on 129M pairs, and its bootstrap rounds (arXiv 2201.12086, 4.1).

    capfilt rounds 1 'lists/*.parquet' --pipeline pipelines/blip_large_129m.py --out runs/large

The list is the 14M pairs of blip_base_14m.py and 115M more of LAION, whose images have a shorter
edge of 256 pixels at least. ROUND is one cleaning with the released models, for `capfilt run`.

Known differences from the paper, besides those of blip_base_14m.py: it sees a fifth of LAION in an
epoch and all of the rest; here as many samples are drawn, from all pairs alike.
"""

from capfilt.models.checkpoints import resolve_model
from capfilt.models.recipe import FilterRecipe, Lengths, Nucleus
from capfilt.recipe.round import Round
from capfilt.rounds import PairFolder, Rounds, TrainPlan
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.download import Download, Resize
from capfilt.stages.policies.blip import Select
from capfilt.train.data.augment import Augment
from capfilt.train.recipe import FineTuneCaptioner, FineTuneFilter, Pretrain

CAPTIONER = "Salesforce/blip-image-captioning-large"
MATCHER = "Salesforce/blip-itm-large-coco"
HUMAN = "data/coco"  # data/train-*.parquet with image and text: COCO's training split
HUMAN_PAIRS = 567_000  # 113,000 images, five captions each
PAIRS_AN_EPOCH = 14_000_000 + 115_000_000 // 5

ROUND = Round(
    fetch=Download(
        resize=Resize(image_size=384, resize_mode="keep_ratio", min_image_size=256), threads=64
    ),
    caption=Caption(
        model=resolve_model(CAPTIONER, "captioner"),
        num_captions=1,
        decoding=Nucleus(top_p=0.9),
        lengths=Lengths(min_length=5, max_length=20),
    ),
    matching=FilterRecipe(model=resolve_model(MATCHER, "matcher")),
    dedup=Dedup("sha256"),  # comparing embeddings grows with the square of the images
    select=Select(threshold=0.5),
    shard_rows=5000,
)

ROUNDS = Rounds(
    first=ROUND,
    like=CAPTIONER,
    human=(PairFolder(HUMAN),),
    # 20 epochs at batch 2400 and 224 px.
    pretrain=TrainPlan(
        "pretrain",
        Pretrain.blip(PAIRS_AN_EPOCH, "large"),
        augment=Augment(),
        precision="bf16",
        recompute=True,
    ),
    # 5 and 6 epochs at batch 256 and 384 px.
    captioner=TrainPlan(
        "captioner",
        FineTuneCaptioner.blip(HUMAN_PAIRS, "large"),
        augment=Augment(),
        precision="bf16",
    ),
    filter=TrainPlan(
        "filter",
        FineTuneFilter.blip(HUMAN_PAIRS, "large"),
        augment=Augment(),
        precision="bf16",
        recompute=True,
    ),
)
