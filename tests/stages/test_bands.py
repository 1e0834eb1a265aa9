"""The search for near hashes: exactly what looking at all pairs finds, without doing so."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from capfilt.stages.dedup import bands, greedy
from capfilt.stages.dedup.bands import Codes, CodeTable, Pairs, hamming
from capfilt.stages.dedup.greedy import Alike, Winners, winners_by_hash, winners_of_pairs

Table = npt.NDArray[np.int64]


def random_codes(count: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 1 << 63, count, dtype=np.uint64) * np.uint64(2)


def flipped(codes: Codes, bits: int, seed: int) -> Codes:
    """Return codes of which exactly so many bits are turned."""
    rng = np.random.default_rng(seed)
    out = codes.copy()
    for place in range(len(codes)):
        for bit in rng.choice(64, bits, replace=False):
            out[place] ^= np.uint64(1) << np.uint64(bit)
    return out


def crowd(count: int, seed: int) -> Codes:
    """Return codes that are all within 8 bits of each other, as those of flat pictures are."""
    return flipped(np.zeros(count, np.uint64), 4, seed)


def by_hand(codes: Codes, radius: int, alike: Alike | None = None) -> list[int]:
    """Greedy, row by row against all kept ones."""
    kept: list[int] = []
    owner = []
    for row in range(len(codes)):
        held = np.array(kept, np.int64)
        near = hamming(codes[held], codes[row : row + 1]) <= radius
        if alike is not None:
            near &= alike(held, np.full(len(held), row))
        winners = held[near]
        owner.append(int(winners[0]) if len(winners) else -1)
        if not len(winners):
            kept.append(row)
    return owner


def owners(found: Winners, count: int) -> list[int]:
    owner = np.full(count, -1)
    owner[found.worse] = found.better
    assert found.worse.tolist() == sorted(set(found.worse.tolist()))
    return [int(row) for row in owner]


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 8, 11])
def test_a_table_finds_every_near_code_and_no_other(radius: int) -> None:
    held = random_codes(400)
    asked = np.concatenate([flipped(held[:50], bits, bits) for bits in range(13)])
    near = hamming(held[None], asked[:, None]) <= radius
    expected = {(int(h), int(a)) for a, h in zip(*np.nonzero(near), strict=True)}
    assert len(expected) >= 50 * (radius + 1)
    found = list(CodeTable.of(held).near(asked, radius))
    pairs = {(h, a) for one in found for h, a in zip(*(x.tolist() for x in one), strict=True)}
    assert pairs == expected


def test_pieces_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.concatenate([crowd(300, 1), random_codes(300)])

    def pairs() -> set[tuple[int, int]]:
        found = CodeTable.of(codes).near(codes, 8)
        return {p for one in found for p in zip(*(x.tolist() for x in one), strict=True)}

    expected = pairs()
    monkeypatch.setattr(bands, "_CHUNK", 7)
    monkeypatch.setattr(bands, "_PIECE", 5)
    assert pairs() == expected


SETS: dict[str, Callable[[], Codes]] = {
    "few": lambda: random_codes(5),
    "none": lambda: random_codes(0),
    "copies": lambda: np.concatenate([random_codes(900), flipped(random_codes(900), 5, 3)]),
    "one code": lambda: np.full(3000, 7, np.uint64),
    "a crowd": lambda: crowd(2500, 1),
    "half a crowd": lambda: np.random.default_rng(5).permutation(
        np.concatenate([crowd(1500, 1), random_codes(1500)])
    ),
    "the crowd last": lambda: np.concatenate([random_codes(1500), crowd(1500, 2)]),
}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("radius", [2, 8, 14])
@pytest.mark.parametrize("name", SETS)
def test_winners_are_those_of_looking_at_all_kept_rows(
    name: str, radius: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:  # so that tables are used, and rows are solved in halves
        monkeypatch.setattr(greedy, "_FEW", 16)
        monkeypatch.setattr(greedy, "_SMALLEST", 16)
        monkeypatch.setattr(greedy, "_PAIRS", 50)
    codes = SETS[name]()
    assert owners(winners_by_hash(codes, radius), len(codes)) == by_hand(codes, radius)
    colours = np.random.default_rng(1).integers(0, 3, len(codes))

    def same_colour(one: Table, other: Table) -> npt.NDArray[np.bool_]:
        return np.asarray(colours[one] == colours[other])

    found = winners_by_hash(codes, radius, same_colour)
    assert owners(found, len(codes)) == by_hand(codes, radius, same_colour)


def test_a_crowd_costs_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rows alike: what is compared grows as the rows do."""
    compared: list[int] = []
    real = bands.hamming

    def counted(codes: Codes, others: Codes) -> npt.NDArray[np.uint8]:
        found = real(codes, others)
        compared.append(found.size)
        return found

    monkeypatch.setattr(bands, "hamming", counted)
    monkeypatch.setattr(greedy, "hamming", counted)
    monkeypatch.setattr(greedy, "_PAIRS", 1000)
    monkeypatch.setattr(greedy, "_FEW", 2048)
    work = []
    for count in (10_000, 40_000):
        compared.clear()
        rows = np.concatenate([crowd(count // 2, 3), random_codes(count // 2)])
        codes = np.random.default_rng(0).permutation(rows)
        for alike in (None, lambda one, _: np.ones(len(one), np.bool_)):
            assert len(winners_by_hash(codes, 8, alike).worse) >= count // 2 - 5
        work.append(sum(compared))
    assert work[1] < 6 * work[0]  # 4 times the rows; all pairs would be 16 times
    assert work[1] < 40_000**2 / 20


def test_pairs_that_are_known_are_settled_greedily() -> None:
    def blocks() -> Iterator[Pairs]:
        yield np.array([1, 0]), np.array([2, 1])
        yield np.array([2]), np.array([3])

    assert owners(winners_of_pairs(4, blocks()), 4) == [-1, 0, -1, 2]
    assert owners(winners_of_pairs(3, ()), 3) == [-1, -1, -1]
