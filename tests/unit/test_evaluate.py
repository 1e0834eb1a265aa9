"""Retrieval, caption scores and judging, against figures worked out by hand or by counting."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from capfilt.evaluate.captions import caption_scores
from capfilt.evaluate.judging import judge, roc_auc
from capfilt.evaluate.retrieval import recalls, reranked


def test_recalls_of_a_small_case() -> None:
    # Texts 0 and 1 belong to image 0, text 2 to image 1.
    similarity = np.array([[0.1, 0.3, 0.9], [0.2, 0.8, 0.7]])
    found = recalls(similarity, [0, 0, 1], ks=(1, 2, 3))
    assert found.text == {1: 0.0, 2: 1.0, 3: 1.0}  # each image finds its own text second
    assert found.image == {1: 0.0, 2: 1.0, 3: 1.0}
    assert set(recalls(similarity, [0, 0, 1]).plain()) == {
        f"{kind}@{k}" for kind in ("TR", "IR") for k in (1, 5, 10)
    }


@given(
    hnp.arrays(np.float64, (4, 7), elements=st.floats(-1, 1)),
    st.permutations([0, 0, 1, 2, 2, 3, 3]),
    st.integers(1, 7),
)
def test_recalls_are_counts(similarity: np.ndarray, owners: list[int], k: int) -> None:
    found = recalls(similarity, owners, ks=(k,))
    hits = 0
    for image in range(4):
        ranked = sorted(range(7), key=lambda t: (-similarity[image, t], t))
        hits += any(owners[t] == image for t in ranked[:k])
    assert found.text[k] == hits / 4
    hits = 0
    for text in range(7):
        ranked = sorted(range(4), key=lambda i: (-similarity[i, text], i))
        hits += owners[text] in ranked[:k]
    assert found.image[k] == hits / 7


def test_owners_must_fit() -> None:
    with pytest.raises(ValueError, match="2 owners for 2 images and 3 texts"):
        recalls(np.zeros((2, 3)), [0, 1])
    with pytest.raises(ValueError, match="owners"):
        recalls(np.zeros((2, 2)), [0, 0])


def test_reranking_moves_only_the_top() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.7, 0.2, 0.6]])
    better = {(0, 1): 5.0, (1, 2): 5.0, (1, 0): 4.0}
    asked: set[tuple[int, int]] = set()

    def rescore(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        pairs = list(zip(images.tolist(), texts.tolist(), strict=True))
        asked.update(pairs)
        return np.array([better.get(pair, 0.0) for pair in pairs])

    texts, images = reranked(similarity, 2, rescore)
    assert np.argsort(-texts, axis=1).tolist() == [[1, 0, 2], [2, 0, 1]]
    assert np.argsort(-images.T, axis=1).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert (0, 2) in asked  # of each text both images are within the top two
    only, _ = reranked(similarity, 1, rescore)
    assert np.argsort(-only, axis=1).tolist() == [[0, 1, 2], [0, 2, 1]]


def test_a_perfect_caption_scores_highest() -> None:
    references = [["a red star on snow", "a star"], ["two green rings"], ["a dog, that runs!"]]
    perfect = caption_scores([own[0] for own in references], references)
    worse = caption_scores(["a red ring", "two rings", "a cat"], references)
    wrong = caption_scores(["x", "y", "z"], references)
    assert perfect.bleu[0] == pytest.approx(1.0)
    assert perfect.cider > worse.cider > wrong.cider == 0.0
    assert caption_scores(["A RED star; on snow"], [["a red star on snow"]]).bleu[3] > 0.99
    assert set(perfect.plain()) == {"CIDEr", *(f"BLEU@{n}" for n in range(1, 5))}


def test_bleu_1_is_clipped_precision_with_a_brevity_penalty() -> None:
    found = caption_scores(["the the cat"], [["the cat sat on mats"]])
    assert found.bleu[0] == pytest.approx(2 / 3 * math.exp(1 - 5 / 3), rel=1e-6)


def test_captions_without_references_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        caption_scores(["a"], [[]])
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        caption_scores(["a"], [["b"], ["c"]])


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_roc_auc_is_the_chance_of_the_right_order(pairs: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([s / 5 for s, _ in pairs]), np.array([true for _, true in pairs])
    both = itertools.product(scores[labels], scores[~labels])
    wins = [(p > n) + (p == n) / 2 for p, n in both]
    if wins:
        assert roc_auc(scores, labels) == pytest.approx(sum(wins) / len(wins))
    else:
        assert np.isnan(roc_auc(scores, labels))


def test_a_filter_is_judged_at_its_threshold() -> None:
    found = judge(np.array([0.9, 0.6, 0.4, 0.5]), np.array([True, False, True, True]))
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    assert found.noise_before == 0.25
    assert found.noise_after == pytest.approx(1 / 3)
    nothing = judge(np.array([0.1]), np.array([False]))
    assert (nothing.precision, nothing.noise_after, nothing.recall) == (0.0, 0.0, 0.0)


def test_where_all_texts_are_true_machines_are_told_no_roc_auc() -> None:
    found = judge(np.array([0.9, 0.1]), np.array([True, True]))
    assert math.isnan(found.auc)
    assert found.plain()["auc"] is None
    assert found.plain()["precision"] == 1.0
