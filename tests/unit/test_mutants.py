"""The changes of `make mutants` can still be made: each text stands once in its file."""

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.what for mutant in MUTANTS])
def test_a_change_can_be_made(mutant: Mutant) -> None:
    text = (ROOT / "capfilt" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert all((ROOT / "tests" / name).exists() for name in mutant.tests.split())
