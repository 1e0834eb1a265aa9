"""The public names: all there, each imported only when it is asked for."""

import subprocess
import sys

import capfilt


def test_every_public_name_is_there() -> None:
    for name in capfilt.__all__:
        assert getattr(capfilt, name) is not None
    assert set(dir(capfilt)) == set(capfilt.__all__) == {*capfilt._PLACES, "__version__"}


def test_a_name_that_is_not_there_is_told() -> None:
    assert not hasattr(capfilt, "Rownd")


def test_importing_capfilt_imports_nothing_else() -> None:
    script = (
        "import sys, capfilt\n"
        "before = set(sys.modules)\n"
        "print(any(m.startswith('capfilt.') or m == 'numpy' for m in before))\n"
        "print(capfilt.Round.__name__, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "Round", "False"]
