import os
from pathlib import Path

import pytest

# One thread a test process: the suite runs several side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a random captioner and a random matcher of a few thousand parameters."""
    from tests.models.tiny import save_pair

    return save_pair(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real pictures and hostile files."""
    folder = os.environ.get("CAPFILT_TEST_DATA")
    if not folder:
        pytest.skip("CAPFILT_TEST_DATA is unset: no real pictures and hostile files to test with")
    return Path(folder)
