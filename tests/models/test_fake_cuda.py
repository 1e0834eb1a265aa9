"""The CUDA branches on a fake GPU: every tensor in its place, no more asked than before."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from capfilt.models.compute.transfer import PixelUpload, Readback, indices, to_device
from tests.models.fake_cuda import DEVICE, Counts, fake_cuda
from tests.models.fake_cuda_cases import BUDGET, CASES, counted

WRITES_ANEW = f"if that is meant: python -m {counted.__module__} writes {BUDGET.name} anew"


@pytest.mark.parametrize("case", CASES)
def test_a_case_keeps_its_budget(case: str, tmp_path: Path) -> None:
    budget = json.loads(BUDGET.read_text(encoding="utf-8"))
    parts = counted(case, tmp_path)
    assert parts.keys() == budget.get(case, {}).keys(), WRITES_ANEW
    told = [
        f"{case}, {part}: {count} {name}, the budget is {budget[case][part][name]}{_where(counts)}"
        for part, counts in parts.items()
        for name, count in counts.plain().items()
        if count > budget[case][part][name]
    ]
    assert not told, "\n".join([*told, WRITES_ANEW])
    assert any(counts.kernels for counts in parts.values())


def test_the_budget_names_what_there_is() -> None:
    assert list(json.loads(BUDGET.read_text(encoding="utf-8"))) == list(CASES), WRITES_ANEW


def test_devices_are_not_mixed() -> None:
    with fake_cuda(ends_after=1), pytest.raises(RuntimeError, match="found at least two devices"):
        torch.zeros(2, device=DEVICE) + torch.zeros(2)


def test_kernels_are_counted_and_views_are_not() -> None:
    with fake_cuda(ends_after=1) as cuda:
        x = torch.zeros(4, 6, device=DEVICE)
        with cuda.counted() as counts:
            y = x.T[1:, None].expand(-1, 3, -1).flatten(1, 1)
            y.add_(1).softmax(-1)
            torch.zeros(2) + 1  # the host's own
        assert counts == Counts(kernels=2)


def test_what_the_host_reads_is_counted() -> None:
    with fake_cuda(ends_after=1) as cuda:
        x = torch.zeros(4, device=DEVICE)
        with cuda.counted() as counts:
            x.sum().item()
            x.tolist()
            bool((x > 0).any())
            x[x > 0]
        assert counts.reads == 4
        assert sum(counts.where.values()) == 4
        with cuda.counted() as aside:
            back = Readback(x > 0)
            back.send(x > 0)
            back.read()
        assert (aside.reads, aside.waits) == (0, 1)


def test_copies_to_the_device_are_counted_by_what_they_hold() -> None:
    with fake_cuda(ends_after=1) as cuda:
        with cuda.counted() as counts:
            torch.tensor([1, 2], device=DEVICE)
            torch.zeros(3).to(DEVICE)
            torch.zeros(3).to(DEVICE, non_blocking=True)  # pageable: it holds all the same
            torch.zeros(3).pin_memory().to(DEVICE)
        assert (counts.blocking, counts.uploads) == (4, 0)
        with cuda.counted() as aside:
            to_device(torch.zeros(3), DEVICE)
            indices([1, 2], DEVICE)
            list(PixelUpload([np.zeros((4, 4, 3), np.uint8)] * 3, 2, DEVICE))
        assert (aside.blocking, aside.uploads) == (0, 4)


def _where(counts: Counts) -> str:
    return "".join(f"\n    {times} × {place}" for place, times in counts.where.items())
