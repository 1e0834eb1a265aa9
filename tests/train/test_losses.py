"""Losses against the papers' equations in plain loops, momentum and queues, and a few steps."""

import copy
import io
import math
import socket
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.multiprocessing import get_context
from torch.nn.functional import normalize

from capfilt.errors import InputError, ModelError
from capfilt.simweb import vocab
from capfilt.simweb.grammar import describe
from capfilt.train.data.batch import normalised
from capfilt.train.data.tokens import (
    Special,
    Texts,
    caption_texts,
    filter_texts,
    pair_ids,
    prompt_tokens,
)
from capfilt.train.model.collective import gathered, gathered_features
from capfilt.train.model.losses import (
    IGNORED,
    Features,
    draw_negatives,
    itc_loss,
    itm_loss,
    lm_labels,
    lm_loss,
    positives,
    similarities,
)
from capfilt.train.model.med import Med
from capfilt.train.model.momentum import Momentum
from capfilt.train.model.objective import (
    Pairs,
    before_step,
    caption_loss,
    filter_losses,
    step_generator,
)
from capfilt.train.recipe import (
    FineTuneCaptioner,
    FineTuneFilter,
    Itc,
    Itm,
    Lm,
    Optim,
    Pretrain,
)
from tests.models.tiny import config
from tests.stages.pictures import make_pictures

SPECIAL = Special(cls=2, enc=6, dec=5)


def unit(generator: torch.Generator, rows: int, width: int = 5) -> torch.Tensor:
    return normalize(torch.randn(rows, width, generator=generator), dim=1)


def pair(generator: torch.Generator, rows: int) -> Features:
    return Features(unit(generator, rows), unit(generator, rows))


# ITC


def reference_softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [value / sum(powers) for value in powers]


def reference_itc(
    own: Any, slow: Any, keys: Any, right: Any, temperature: float, alpha: float
) -> float:
    """ALBEF's equations 1, 2 and 6, one similarity at a time."""
    total = 0.0
    for query, thinker, key in (
        (own.image, slow.image, keys.text),
        (own.text, slow.text, keys.image),
    ):
        for i, vector in enumerate(query.tolist()):
            p = reference_softmax([np.dot(vector, k) / temperature for k in key.tolist()])
            soft = reference_softmax(
                [np.dot(thinker[i].tolist(), k) / temperature for k in key.tolist()]
            )
            count = sum(right[i])
            for j, chance in enumerate(p):
                target = (1 - alpha) * (1 / count if right[i][j] else 0) + alpha * soft[j]
                total -= target * math.log(chance)
    return total / len(own.image) / 2


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 5),
    queued=st.integers(0, 6),
    alpha=st.sampled_from([0.0, 0.25, 0.4, 1.0]),
    temperature=st.sampled_from([0.05, 0.07, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_itc_is_the_equation(
    seed: int, rows: int, queued: int, alpha: float, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    own, slow = pair(generator, rows), pair(generator, rows)
    queue = pair(generator, queued)
    keys = Features(*(torch.cat(both) for both in zip(slow, queue, strict=True)))
    right = torch.rand(rows, rows + queued, generator=generator) < 0.2
    right |= torch.eye(rows, rows + queued, dtype=torch.bool)
    found = itc_loss(own, slow, keys, right, torch.tensor(temperature), alpha)
    wanted = reference_itc(own, slow, keys, right.tolist(), temperature, alpha)
    assert found.item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_itc_teaches_model_and_temperature_but_not_the_momentum_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    own, slow = (
        Features(*(each.requires_grad_() for each in pair(generator, 4))) for _ in range(2)
    )
    temperature = torch.tensor(0.07, requires_grad=True)
    keys = Features(slow.image.detach(), slow.text.detach())
    right = torch.eye(4, dtype=torch.bool)
    itc_loss(own, slow, keys, right, temperature, 0.4).backward()  # type: ignore[no-untyped-call]  # torch declares it so
    for tensor in (*own, temperature):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().sum()) > 0
    assert slow.image.grad is None
    assert slow.text.grad is None


def test_itc_is_not_coarser_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    own, slow = pair(generator, 6), pair(generator, 6)
    right = torch.eye(6, dtype=torch.bool)
    plain = itc_loss(own, slow, slow, right, torch.tensor(0.01), 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(itc_loss(own, slow, slow, right, torch.tensor(0.01), 0.4), plain)


def test_positives_share_an_image_or_a_caption() -> None:
    ids = pair_ids(["a", "a", "b", "c"], ["one", "two", "two", "three"])
    assert positives(ids, ids).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 1],
    ]
    # A key that reads as a caption is none: identities are compared by column.
    crossed = pair_ids(["x", "y"], ["y", "x"])
    assert positives(crossed, crossed).int().tolist() == [[1, 0], [0, 1]]
    assert pair_ids(["a\ud800"], ["\u00e9"]).dtype == torch.long


# ITM


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 7), share=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=60, deadline=None)
def test_drawn_negatives_are_labelled_by_what_belongs_together(
    seed: int, rows: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(rows, rows, generator=generator) < share
    right = right | right.T | torch.eye(rows, dtype=torch.bool)
    similar = torch.randn(rows, rows, generator=generator) * 300  # softmax gives zeros
    drawn = draw_negatives(similar, similar.T, right, step_generator(seed, 0))
    again = draw_negatives(similar, similar.T, right, step_generator(seed, 0))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    image, text, label = (each.tolist() for each in drawn)
    own = list(range(rows))
    assert image[: 2 * rows] == own + own
    assert text[:rows] == own
    assert text[2 * rows :] == own
    for i, j, match in zip(image, text, label, strict=True):
        assert match == int(right[i, j])
    for place in range(rows, 3 * rows):
        i = place % rows
        assert label[place] == 0 or (bool(right[i].all()) and image[place] == text[place] == i)


def test_negatives_are_drawn_in_proportion_to_softmax_similarity() -> None:
    similar = torch.tensor([[9.0, 1.0, 2.0, 0.0]]).expand(4, 4)
    right = torch.eye(4, dtype=torch.bool)
    drawn = draw_negatives(similar, similar, right, step_generator(1, 2), 4000, 0)
    first = drawn.text[4:].view(4000, 4)[:, 0]  # the hard texts of image 0
    shares = [float((first == column).float().mean()) for column in range(4)]
    all_of = reference_softmax([9.0, 1.0, 2.0, 0.0])
    weights = [0.0, *(chance + 1e-4 for chance in all_of[1:])]
    wanted = [weight / sum(weights) for weight in weights]
    assert shares == pytest.approx(wanted, abs=0.03)
    assert shares[0] == 0.0
    # From image 1 on, a sharp favourite is all but always drawn.
    assert float((drawn.text[4:].view(4000, 4)[:, 1] == 0).float().mean()) > 0.99


def test_draws_differ_by_seed_step_and_rank_and_take_no_global_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    similar, right = torch.zeros(40, 40), torch.eye(40, dtype=torch.bool)
    draw_samples = [
        tuple(draw_negatives(similar, similar, right, step_generator(*which)).text.tolist())
        for which in ((0, 0), (1, 0), (0, 1), (0, 0, 1))
    ]
    assert len(set(draw_samples)) == 4
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.booleans()), min_size=1))
@settings(max_examples=50, deadline=None)
def test_itm_is_the_cross_entropy_of_a_match(rows: list[tuple[float, float, bool]]) -> None:
    logits = torch.tensor([row[:2] for row in rows])
    label = torch.tensor([int(row[2]) for row in rows])
    wanted = sum(math.log(math.exp(a) + math.exp(b)) - (b if y else a) for a, b, y in rows)
    assert itm_loss(logits, label).item() == pytest.approx(wanted / len(rows), rel=1e-4, abs=1e-4)


# LM


def reference_lm(
    logits: Any, ids: Any, lengths: list[int], given_tokens: int, smoothing: float
) -> float:
    """Mean over predicted tokens of the cross entropy with smoothed targets (Szegedy et al.)."""
    total, count = 0.0, 0
    for row, length in enumerate(lengths):
        for place in range(given_tokens, length):  # the token that is predicted
            scores = logits[row][place - 1]
            logs = [math.log(p) for p in reference_softmax(scores)]
            right = ids[row][place]
            spread = sum(logs) / len(logs)
            total -= (1 - smoothing) * logs[right] + smoothing * spread
            count += 1
    return total / max(count, 1)


@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    given_tokens=st.integers(1, 5),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(max_examples=50, deadline=None)
def test_lm_is_the_equation(
    seed: int, lengths: list[int], given_tokens: int, smoothing: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (len(lengths), 8), generator=generator)
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    logits = torch.randn(len(lengths), 8, 11, generator=generator, requires_grad=True)
    labels = lm_labels(ids, mask, given_tokens)
    loss = lm_loss(logits, labels, smoothing)
    wanted = reference_lm(logits.tolist(), ids.tolist(), lengths, given_tokens, smoothing)
    assert loss.item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    wanted_places = labels != IGNORED
    few = lm_loss(logits[wanted_places], labels[wanted_places], smoothing)
    assert few.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
    loss.backward()  # type: ignore[no-untyped-call]  # torch declares it so
    assert logits.grad is not None
    assert bool((logits.grad.abs().sum(-1) > 0).equal(wanted_places))


# Momentum and queues


def stepped(med: Med, seed: int) -> None:
    """Change every weight, as a step of an optimiser does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in med.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_the_copy_has_what_itc_needs_and_no_more() -> None:
    med = Med.new(config(), 0)
    momentum = Momentum(med, 8)
    names = {name for name, _ in momentum.named_parameters()}
    assert names == {
        name
        for name, _ in med.named_parameters()
        if name.split(".")[0] in {"vision_model", "text_encoder", "vision_proj", "text_proj"}
        and "crossattention" not in name
    }
    assert not any(p.requires_grad for p in momentum.parameters())
    assert all(p.requires_grad for p in med.parameters())
    pixels, texts = torch.randn(3, 3, 32, 32), Texts(*tokens(3))
    slow = momentum.features(pixels, texts.ids, texts.mask)
    states = med.encode_image(pixels)
    own = Features(
        med.image_features(states), med.text_features(med.encode_text(texts.ids, texts.mask))
    )
    for ours, theirs in zip(own, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0.0)


def tokens(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(7, 60, (rows, 6), generator=torch.Generator().manual_seed(rows))
    ids[:, 0] = 2
    return ids, torch.arange(6) < (torch.arange(rows) % 4 + 3)[:, None]


def test_the_copy_moves_by_an_exponential_mean() -> None:
    med = Med.new(config(), 0)
    momentum = Momentum(med, 8)
    wanted = {n: p.detach().double().numpy().copy() for n, p in momentum.named_parameters()}
    for step in range(4):
        stepped(med, step)
        momentum.update(med, 0.9)
        for name, before in wanted.items():
            fast = med.get_parameter(name).detach().double().numpy()
            wanted[name] = 0.9 * before + 0.1 * fast
    for name, slow in momentum.named_parameters():
        np.testing.assert_allclose(slow.numpy(), wanted[name], atol=1e-6)
    assert not torch.equal(momentum.get_parameter("text_proj.weight"), med.text_proj.weight)


@given(size=st.integers(0, 7), counts=st.lists(st.integers(0, 10), max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_queue_holds_the_newest_keys(size: int, counts: list[int]) -> None:
    momentum = empty_queue(size)
    history: list[int] = []
    for count in counts:
        numbers = list(range(len(history), len(history) + count))
        momentum.enqueue(*numbered(numbers))
        history += numbers
        fresh, ids = numbered([-1, -2])
        keys, key_ids = momentum.keys(fresh, ids)
        held = key_ids[:, 0].tolist()
        assert held[:2] == [-1, -2]
        assert sorted(held[2:]) == history[len(history) - min(size, len(history)) :]
        for row, number in enumerate(held):  # features travel with their ids
            assert keys.image[row].tolist() == [float(number)] * 16
            assert keys.text[row].tolist() == [number + 0.5] * 16


def numbered(numbers: list[int]) -> tuple[Features, torch.Tensor]:
    column = torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 16)
    ids = torch.tensor(numbers, dtype=torch.long)[:, None].expand(-1, 2)
    return Features(column, column + 0.5), ids


MED = Med.new(config(), 0)


def empty_queue(size: int) -> Momentum:
    return Momentum(MED, size)


def test_a_resumed_copy_goes_on_as_the_one_that_was_not_stopped() -> None:
    med = Med.new(config(), 0)
    kept = Momentum(med, 5)

    def steps(momentum: Momentum, numbers: range) -> None:
        for number in numbers:
            stepped(med, number)
            momentum.update(med, 0.8)
            momentum.enqueue(*numbered([number * 3, number * 3 + 1, number * 3 + 2]))

    steps(kept, range(3))
    file = io.BytesIO()
    torch.save({"med": med.state_dict(), "momentum": kept.state_dict()}, file)
    steps(kept, range(3, 6))
    file.seek(0)
    state = torch.load(file, weights_only=True)
    med = Med.new(config(), 99)
    resumed = Momentum(med, 5)
    med.load_state_dict(state["med"])
    resumed.load_state_dict(state["momentum"])
    steps(resumed, range(3, 6))
    for (name, one), other in zip(
        kept.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


# Several processes


def each_process(rank: int, port: int, results: Any) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    generator = torch.Generator().manual_seed(4)
    own, slow = pair(generator, 6), pair(generator, 6)
    here = slice(3 * rank, 3 * rank + 3)
    ours = Features(*(each[here].requires_grad_() for each in own))
    theirs = Features(*(each[here] for each in slow))
    ids = torch.arange(6)[:, None].expand(-1, 2)
    keys = gathered_features(theirs)
    right = positives(ids[here], gathered(ids[here]))
    loss = itc_loss(ours, theirs, keys, right, torch.tensor(0.07), 0.4)
    results.put((rank, loss.item(), gathered(ids[here])[:, 0].tolist()))
    distributed.destroy_process_group()


def test_two_processes_contrast_as_one_with_both_halves() -> None:
    generator = torch.Generator().manual_seed(4)
    own, slow = pair(generator, 6), pair(generator, 6)
    right = torch.eye(6, dtype=torch.bool)
    alone = itc_loss(own, slow, slow, right, torch.tensor(0.07), 0.4).item()
    assert torch.equal(gathered(own.image), own.image)  # one process gathers its own
    context = get_context("spawn")
    results = context.Queue()
    port = free_port()
    workers = [context.Process(target=each_process, args=(r, port, results)) for r in (0, 1)]
    for worker in workers:
        worker.start()
    told = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert [order for _, _, order in told] == [list(range(6))] * 2
    assert sum(loss for _, loss, _ in told) / 2 == pytest.approx(alone, rel=1e-5)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


# Tokens


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return vocab.build_tokenizer()


def test_texts_begin_with_the_token_of_their_use(tokenizer: Any) -> None:
    special = Special.of(tokenizer, config().text_config)
    assert special == Special(cls=vocab.CLS, enc=vocab.ENC, dec=vocab.DEC)
    texts = filter_texts(tokenizer, ["A red circle!", "", "a " * 60])
    assert texts.ids.shape == (3, 32)  # 30 words, [CLS] and [SEP]
    assert texts.mask.sum(1).tolist() == [5, 2, 32]
    assert texts.ids[1, :3].tolist() == [vocab.CLS, vocab.SEP, vocab.PAD]
    headed = texts.headed(special.enc)
    assert headed[:, 0].tolist() == [vocab.ENC] * 3
    assert torch.equal(headed[:, 1:], texts.ids[:, 1:])
    assert texts.ids[0, 0] == vocab.CLS


def test_the_prompt_is_given_and_the_end_is_predicted(tokenizer: Any) -> None:
    count = prompt_tokens(tokenizer, Lm().prompt)
    assert count == 4  # [DEC] a picture of
    captions = caption_texts(tokenizer, Lm().prompt, ["a red circle", "x y " * 40])
    assert captions.ids.shape == (2, 40)
    labels = lm_labels(captions.headed(vocab.DEC), captions.mask, count)
    told = [int(label) for label in labels[0] if label != IGNORED]
    assert tokenizer.decode(told) == "a red circle [SEP]"
    with pytest.raises(InputError, match="the prompt takes"):
        prompt_tokens(tokenizer, "a " * 40)


def test_the_released_vocabulary_has_its_encoder_token_after_the_decoders() -> None:
    class Released:
        cls_token_id = 101

        def get_vocab(self) -> dict[str, int]:
            return {"[CLS]": 101}

    text = copy.copy(config().text_config)
    text.vocab_size, text.bos_token_id = 30524, 30522
    assert Special.of(Released(), text) == Special(cls=101, enc=30523, dec=30522)
    text.vocab_size = 30522
    with pytest.raises(ModelError, match=r"no \[ENC\]"):
        Special.of(Released(), text)


# Recipes


def test_recipes_have_blips_figures() -> None:
    pretrain = Pretrain.blip(pairs=14_000_000)
    assert (pretrain.optim.peak_lr, pretrain.optim.batch_size) == (3e-4, 2880)
    assert pretrain.optim.steps == math.ceil(20 * 14_000_000 / 2880)
    assert pretrain.optim.learning_rate(pretrain.optim.steps) == pytest.approx(1e-6)
    assert pretrain.itc == Itc(57_600, 0.995, 0.4, math.ceil(14_000_000 / 2880), 0.07, (0.001, 0.5))
    assert (pretrain.side, pretrain.lm) == (224, Lm(0.1, "a picture of "))
    captioner = FineTuneCaptioner.blip(566_747)
    assert (captioner.optim.peak_lr, captioner.optim.batch_size, captioner.side) == (1e-5, 256, 384)
    matcher = FineTuneFilter.blip(566_747, "large")
    assert (matcher.optim.peak_lr, matcher.optim.weight_decay) == (5e-6, 0.05)
    assert matcher.optim.steps == math.ceil(6 * 566_747 / 256)


def test_rates_warm_up_and_decay_by_a_cosine() -> None:
    optim = Optim(1.0, steps=100, batch_size=8, warmup_steps=20, min_lr_factor=0.1)
    rates = [optim.learning_rate(step) for step in range(101)]
    assert 0 < rates[0] < rates[10] < rates[20] == 1.0 == max(rates)
    assert rates[60] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert [Itc(alpha_ramp_steps=10).alpha_at(step) for step in (0, 5, 10, 99)] == pytest.approx(
        [0.0, 0.2, 0.4, 0.4]
    )
    assert Itc().alpha_at(0) == 0.4


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Itc(queue_size=-1), "queue_size"),
        (lambda: Itc(momentum=1.5), "momentum"),
        (lambda: Itc(alpha=float("nan")), "alpha"),
        (lambda: Itc(alpha_ramp_steps=-1), "alpha_ramp_steps"),
        (lambda: Itc(temperature=0.7), "temperature"),
        (lambda: Itc(temperature_range=(0.0, 0.5)), "temperature"),
        (lambda: Itm(0, 0), "negatives"),
        (lambda: Lm(label_smoothing=1.0), "label_smoothing"),
        (lambda: Optim(0.0, 1, 1), "peak_lr"),
        (lambda: Optim(float("inf"), 1, 1), "peak_lr"),
        (lambda: Optim(1.0, 0, 1), "steps"),
        (lambda: Optim(1.0, 5, 1, warmup_steps=6), "warm-up"),
        (lambda: Optim(1.0, 5, 1, min_lr_factor=2.0), "min_lr_factor"),
        (lambda: Optim(1.0, 5, 1, weight_decay=-1.0), "weight_decay"),
        (lambda: Optim(1.0, 5, 1, betas=(0.9, 1.0)), "betas"),
        (lambda: Optim(1.0, 5, 1, clip=0.0), "clip"),
        (lambda: Optim(1.0, 5, 10, accumulate=4), "shared equally"),
        (lambda: Optim(1.0, 5, 12, accumulate=2).micro_batch(4), "shared equally"),
        (lambda: Pretrain(Optim(1.0, 1, 1), side=0), "side"),
        (lambda: FineTuneCaptioner(Optim(1.0, 1, 1), captions_per_image=0), "captions_per_image"),
        (lambda: FineTuneFilter.blip(0), "pairs"),
        (lambda: Pretrain.blip(10, epochs=0), "epochs"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()


def test_negatives_of_the_data_are_further_pairs_that_leave_matches_their_weight(
    small: "Small", tokenizer: Any
) -> None:
    med, pairs, _, own = small
    count, refuted = 64, torch.tensor([3, 3, 10, 40])
    said = ["a red cat", "a blue dog", "nothing", "a green hat"]
    given = pairs._replace(texts=filter_texts(tokenizer, [*own, *said]), refuted=refuted)
    with torch.no_grad():
        states = med.encode_image(pairs.pixels)
        one, plain = (
            filter_losses(
                *(med, Momentum(med, 16), each, states, SPECIAL, Itc(queue_size=16), Itm(), 0.4),
                step_generator(0, 0),
            )
            for each in (given, pairs)
        )
        extra = filter_texts(tokenizer, said)
        logits = med.match(extra.headed(SPECIAL.enc), extra.mask, states, refuted)
        more = -torch.log_softmax(logits.double(), 1)[:, 0].sum()
        drawn = _drawn_losses(med, pairs, states)
    assert one.itc.item() == pytest.approx(plain.itc.item(), abs=1e-5)
    assert plain.itm.item() == pytest.approx(drawn.mean().item(), abs=1e-5)
    # By hand: the pairs drawn as before, and the four more; matches weigh as they did against two.
    weight = (2 * count + 4) / (2 * count)
    total = weight * drawn[:count].sum() + drawn[count:].sum() + more
    every = weight * count + 2 * count + 4
    assert one.itm.item() == pytest.approx(total.item() / every, abs=1e-5)


def _drawn_losses(med: Med, pairs: Pairs, states: torch.Tensor) -> torch.Tensor:
    """Return the loss of each pair that is drawn, the own pairs first."""
    texts = pairs.texts
    plain = med.encode_text(texts.headed(SPECIAL.cls), texts.mask)
    features = Features(med.image_features(states), med.text_features(plain))
    slow = Momentum(med, 16).features(pairs.pixels, texts.headed(SPECIAL.cls), texts.mask)
    similar = similarities(features, slow, med.temperature)
    drawn = draw_negatives(*similar, positives(pairs.ids, pairs.ids), step_generator(0, 0))
    grounded = texts.headed(SPECIAL.enc)[drawn.text]
    logits = med.match(grounded, texts.mask[drawn.text], states, drawn.image)
    return -torch.log_softmax(logits.double(), 1)[torch.arange(len(logits)), drawn.label]


# All together


class Small(NamedTuple):
    """64 pictures with a text each, and an untrained model for them."""

    med: Med
    pairs: Pairs
    captions: Texts
    told: list[str]


@pytest.fixture
def small(tokenizer: Any) -> Small:
    pictures = make_pictures(seed=1, count=64, workers=1)
    rng = Random(0)
    told = [describe(scene, rng) for scene in pictures.scenes]
    pixels = torch.from_numpy(normalised(pictures.pixels))
    ids = pair_ids([str(number) for number in range(64)], told)
    architecture = config()
    architecture.text_config.vocab_size = len(vocab.vocabulary())
    architecture.vision_config.image_size = 64
    pairs = Pairs(pixels, filter_texts(tokenizer, told), ids)
    captions = caption_texts(tokenizer, Lm().prompt, told)
    return Small(Med.new(architecture, 0), pairs, captions, told)


def descend(
    parameters: Iterable[nn.Parameter], losses: Callable[[int], Sequence[torch.Tensor]], steps: int
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Take steps down the sum of the losses; returns (steps, losses)."""
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    history = []
    for step in range(steps):
        found = losses(step)
        optimizer.zero_grad()
        torch.stack(list(found)).sum().backward()  # type: ignore[no-untyped-call]  # torch declares it so
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        history.append([loss.item() for loss in found])
    return np.array(history)


def test_a_few_steps_lower_contrast_and_caption_loss_and_feed_the_queue(
    small: Small, tokenizer: Any
) -> None:
    med, pairs, captions, _ = small
    itc, lm = Itc(queue_size=128, momentum=0.9, alpha_ramp_steps=20), Lm()
    momentum, prompt = Momentum(med, itc.queue_size), prompt_tokens(tokenizer, lm.prompt)

    def losses(step: int) -> list[torch.Tensor]:
        before_step(med, momentum, itc)
        states = med.encode_image(pairs.pixels)
        alpha, draw_samples = itc.alpha_at(step), step_generator(0, step)
        found = filter_losses(
            med, momentum, pairs, states, SPECIAL, itc, Itm(), alpha, draw_samples
        )
        return [*found, caption_loss(med, captions, states, SPECIAL, lm, prompt)]

    history = descend(med.parameters(), losses, 42)
    assert np.isfinite(history).all()
    # The queue is full from the second step on, so the chance level stays the same.
    first, last = history[3:6].mean(axis=0), history[-3:].mean(axis=0)
    assert last[0] < first[0] - 0.2
    assert last[2] < 0.75 * first[2]
    assert momentum.filled == 128
    assert med.temperature.item() != pytest.approx(0.07, abs=1e-4)


def test_a_few_steps_lower_the_matching_loss(small: Small) -> None:
    """On negatives drawn once: against ever new ones, matching is the last thing to be learnt."""
    med, pairs, _, _ = small
    level, right = torch.zeros(64, 64), positives(pairs.ids, pairs.ids)
    drawn = draw_negatives(level, level, right, step_generator(0, 0))
    ids, mask = pairs.texts.headed(SPECIAL.enc)[drawn.text], pairs.texts.mask[drawn.text]

    def losses(_: int) -> list[torch.Tensor]:
        states = med.encode_image(pairs.pixels)
        return [itm_loss(med.match(ids, mask, states, drawn.image), drawn.label)]

    history = descend(med.matcher_parameters(), losses, 65)
    blind = 0.6365  # of who says one third, whatever is shown
    assert history[1:4].mean() > blind - 0.01
    assert history[-3:].mean() < blind - 0.1


def test_losses_of_a_step_are_the_papers_of_its_parts(small: Small) -> None:
    """The composition: right token, right keys, right negatives, the queue fed afterwards."""
    med, pairs, _, _ = small
    few = Pairs(pairs.pixels[:6], Texts(pairs.texts.ids[:6], pairs.texts.mask[:6]), pairs.ids[:6])
    momentum, itc = Momentum(med, 8), Itc(queue_size=8)
    stepped(med, 1)
    past, past_ids = pair(torch.Generator().manual_seed(1), 3), torch.arange(6).view(3, 2)
    wide = Features(*(nn.functional.pad(each, (0, 11)) for each in past))
    momentum.enqueue(wide, past_ids)
    states = med.encode_image(few.pixels)
    found = filter_losses(
        med, momentum, few, states, SPECIAL, itc, Itm(), 0.4, step_generator(3, 1)
    )
    with torch.no_grad():
        ids = few.texts.headed(SPECIAL.cls)
        own = Features(
            med.image_features(states), med.text_features(med.encode_text(ids, few.texts.mask))
        )
        slow = momentum.features(few.pixels, ids, few.texts.mask)
        keys = Features(*(torch.cat(both) for both in zip(slow, wide, strict=True)))
        right = positives(few.ids, torch.cat([few.ids, past_ids]))
        wanted = reference_itc(own, slow, keys, right.tolist(), med.temperature.item(), 0.4)
        assert found.itc.item() == pytest.approx(wanted, rel=1e-4)
        scores = similarities(own, slow, med.temperature)
        drawn = draw_negatives(*scores, right[:, :6], step_generator(3, 1))
        logits = med.match(
            few.texts.headed(SPECIAL.enc)[drawn.text],
            few.texts.mask[drawn.text],
            states[drawn.image],
        )
    chances = [reference_softmax(row) for row in logits.tolist()]
    logs = [math.log(row[label]) for row, label in zip(chances, drawn.label.tolist(), strict=True)]
    assert found.itm.item() == pytest.approx(-sum(logs) / 18, rel=1e-4)
    assert momentum.filled == 8
    assert momentum.id_queue[3:].tolist() == few.ids[:5].tolist()
    assert momentum.id_queue[0].tolist() == few.ids[5].tolist()
