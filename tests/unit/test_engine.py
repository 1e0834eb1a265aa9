from pathlib import Path

import pytest

from capfilt.engine import machine
from capfilt.engine.machine import choose_workers
from capfilt.engine.precision import check_precisions, precision_hint, precision_warning
from capfilt.errors import InputError
from capfilt.models.compute.packed_linear import fast_bf16_cpu
from capfilt.models.recipe import ModelRef


def model(folder: Path, size: int) -> ModelRef:
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size)
    return ModelRef("digest", folder.name, str(folder))


def test_large_models_at_full_precision_get_a_hint_where_half_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = model(tmp_path / "small", 10**6), model(tmp_path / "large", 10**9)
    monkeypatch.setattr("capfilt.engine.precision._fast_bf16_gpu", lambda _: True)
    told = precision_hint((small, large), ("fp32", "bf16"), ("cuda:0",))
    assert told is not None
    assert "--precision bf16" in told
    assert precision_hint((small, large), ("bf16", "bf16"), ("cuda:0",)) is None
    assert precision_hint((small, small), ("fp32", "fp32"), ("cuda:0",)) is None


def test_a_processor_gets_one_only_if_it_has_bf16_units(tmp_path: Path) -> None:
    told = precision_hint((model(tmp_path / "large", 10**9),), ("fp32",), ("cpu",))
    assert (told is not None) == fast_bf16_cpu()


@pytest.mark.parametrize("units", [True, False])
def test_bf16_without_units_for_it_is_warned_of(
    units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capfilt.models.compute.packed_linear.fast_bf16_cpu", lambda: units)
    told = precision_warning(("fp32", "bf16"), ("cpu",))
    assert (told is None) == units
    assert told is None or "leave --precision bf16 out" in told
    assert precision_warning(("fp32", "fp32"), ("cpu",)) is None
    monkeypatch.setattr("capfilt.engine.precision._fast_bf16_gpu", lambda _: units)
    told = precision_warning(("bf16",), ("cuda:0", "cuda:1"))
    assert (told is None) == units
    assert told is None or "--precision fp16" in told


def test_workers_are_as_many_as_cores_and_memory_bear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = (model(tmp_path / "captioner", 10**9), model(tmp_path / "matcher", 10**9))
    monkeypatch.setattr(machine, "cores", lambda: 16)

    def chosen(free: int) -> int:
        monkeypatch.setattr(machine, "_available_bytes", lambda: free)
        return choose_workers(None, models, ("cpu",))

    assert chosen(10**12) == 16
    assert chosen(1) == 1  # never none
    # Each worker holds both models, at twice the size of their files.
    by_memory = chosen(40 * 10**9)
    assert 1 < by_memory <= 40 // 4
    assert chosen(20 * 10**9) < by_memory
    assert choose_workers(7, models, ("cpu",)) == 7


def test_a_gpu_gets_two_processes_where_its_memory_bears_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = (model(tmp_path / "captioner", 10**9), model(tmp_path / "matcher", 10**9))
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.setattr(machine, "_available_bytes", lambda: 10**12)

    def chosen(memory: int, devices: tuple[str, ...]) -> int:
        monkeypatch.setattr(machine, "_device_bytes", lambda _: memory)
        return choose_workers(None, models, devices)

    assert chosen(80 * 10**9, ("cuda:0", "cuda:1")) == 4
    assert chosen(24 * 10**9, ("cuda:0", "cuda:1")) == 2
    assert chosen(8 * 10**9, ("cuda:0",)) == 1
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert chosen(80 * 10**9, ("cuda:0",)) == 1  # the other core decodes
    assert choose_workers(7, models, ("cuda:0",)) == 7


def test_what_only_a_gpu_has_is_refused_without_one() -> None:
    for wanted in ("tf32", "fp16"):
        with pytest.raises(InputError, match=f"--precision {wanted} is for GPUs"):
            check_precisions(("fp32", wanted), ("cpu",))
        check_precisions((wanted,), ("cuda:0",))
    check_precisions(("fp32", "bf16"), ("cpu",))
