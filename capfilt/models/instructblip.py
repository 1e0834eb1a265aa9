"""InstructBLIP behind the captioner's seam (arXiv 2305.06500): the Q-Former reads the instruction.

The instruction is the prompt. It goes to the language model after the image's queries, and to the
Q-Former beside them, with a tokenizer of its own, so that the queries look for what is asked
(section 2.4).
"""

from pathlib import Path
from typing import ClassVar

import torch
from transformers import InstructBlipForConditionalGeneration, PreTrainedModel

from capfilt.models.blip2 import Blip2Captioner
from capfilt.models.compute.loading import read_tokenizer
from capfilt.models.families import ModelKind
from capfilt.models.recipe import CaptionerRecipe
from capfilt.models.vocabulary import QFORMER_TOKENIZER


class InstructBlipCaptioner(Blip2Captioner):
    """Writes K texts an image as an instruction asks; see `Blip2Captioner` for the rest."""

    kind: ClassVar[ModelKind] = ModelKind.INSTRUCTBLIP_CAPTIONER
    model_class: ClassVar[type[PreTrainedModel]] = InstructBlipForConditionalGeneration

    def __init__(self, recipe: CaptionerRecipe, device: str = "cpu") -> None:
        super().__init__(recipe, device)
        ref = recipe.model
        reader = read_tokenizer(Path(ref.path) / QFORMER_TOKENIZER, ref.name)
        ids = reader(recipe.prompt.strip()).input_ids
        self._instruction = torch.tensor([ids], device=device)

    def _looked(self, states: torch.Tensor) -> torch.Tensor:
        """Return the query outputs (B, Q, D) for image states, the instruction read beside them."""
        queries = self._model.query_tokens.expand(len(states), -1, -1)
        found = self._model.qformer(
            input_ids=self._instruction.expand(len(states), -1),
            query_embeds=queries,
            encoder_hidden_states=states.to(queries.dtype),
        )
        seen: torch.Tensor = found.last_hidden_state[:, : queries.shape[1]]
        return seen
