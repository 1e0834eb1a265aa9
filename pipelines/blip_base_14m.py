"""BLIP-base from fresh weights on 14M pairs, and its bootstrap rounds (arXiv 2201.12086, 4.1).

    capfilt rounds 1 'lists/*.parquet' --pipeline pipelines/blip_base_14m.py --out runs/base

ROUNDS trains everything from your list and your human pairs; of the checkpoints it takes the shape
and the tokenizer alone. ROUND is one cleaning with the released models, for `capfilt run`.

Known differences from the paper: it starts its image encoder from ImageNet weights and its text
model from BERT's, here both begin anew (or give --init); the learning rate decays by a cosine.
"""

from capfilt.models.checkpoints import resolve_model
from capfilt.models.recipe import FilterRecipe, Lengths, Nucleus
from capfilt.recipe.round import Round
from capfilt.rounds import PairFolder, Rounds, TrainPlan
from capfilt.stages.caption import Caption
from capfilt.stages.download import Download, Resize
from capfilt.stages.policies.blip import Select
from capfilt.train.data.augment import Augment
from capfilt.train.recipe import FineTuneCaptioner, FineTuneFilter, Pretrain

CAPTIONER = "Salesforce/blip-image-captioning-base"
MATCHER = "Salesforce/blip-itm-base-coco"
HUMAN = "data/coco"  # data/train-*.parquet with image and text: COCO's training split
HUMAN_PAIRS = 567_000  # 113,000 images, five captions each
PAIRS = 14_000_000

ROUND = Round(
    fetch=Download(resize=Resize(image_size=384, resize_mode="keep_ratio"), threads=64),
    caption=Caption(
        model=resolve_model(CAPTIONER, "captioner"),
        num_captions=1,
        decoding=Nucleus(top_p=0.9),
        lengths=Lengths(min_length=5, max_length=20),
    ),
    matching=FilterRecipe(model=resolve_model(MATCHER, "matcher")),
    select=Select(threshold=0.5),
    shard_rows=2000,
)

ROUNDS = Rounds(
    first=ROUND,
    like=CAPTIONER,
    human=(PairFolder(HUMAN),),
    # 20 epochs at batch 2880 and 224 px.
    pretrain=TrainPlan("pretrain", Pretrain.blip(PAIRS), augment=Augment(), precision="bf16"),
    # 5 and 6 epochs at batch 256 and 384 px.
    captioner=TrainPlan(
        "captioner", FineTuneCaptioner.blip(HUMAN_PAIRS), augment=Augment(), precision="bf16"
    ),
    filter=TrainPlan(
        "filter", FineTuneFilter.blip(HUMAN_PAIRS), augment=Augment(), precision="bf16"
    ),
)
