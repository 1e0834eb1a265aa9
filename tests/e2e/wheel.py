"""Try a wheel in an environment of its own: python -m tests.e2e.wheel WHEEL FOLDER.

The libraries are those of this environment, so nothing is downloaded: the new environment sees them
by a path file, and capfilt itself only by its wheel.
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOMS = {"cli", "commands", "engine", "evaluate", "export", "inputs", "ledger", "models", "recipe"}
MOST_BYTES = 12_000_000


def main(wheel: Path, folder: Path) -> None:
    """Install the wheel, and run what a user runs first."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"capfilt", *(top for top in tops if top.startswith("capfilt-"))}, tops
    assert {name.split("/")[1] for name in names if name.startswith("capfilt/")} >= ROOMS
    assert wheel.stat().st_size < MOST_BYTES
    python = _environment(wheel, folder)
    with tempfile.TemporaryDirectory() as elsewhere:
        for arguments in (
            ["-c", "import capfilt; print(capfilt.Round)"],
            ["-m", "capfilt", "run", "--pipeline", "blip_large", "--help"],
            ["-c", "from capfilt.recipe.pipeline_file import load_pipeline as p; p('demo')"],
            ["-m", "capfilt", "demo", "--rows", "60", "--port", "0", "--quiet"],
        ):
            subprocess.run([str(python), *arguments], cwd=elsewhere, check=True)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {len(names)} files, works")


def _environment(wheel: Path, folder: Path) -> Path:
    """Make an environment with this one's libraries, less capfilt, and the wheel."""
    venv.create(folder, with_pip=False, clear=True)
    bin_ = "Scripts" if sys.platform == "win32" else "bin"
    python = folder / bin_ / "python"
    site = next(folder.glob("lib/python*/site-packages"), folder / "Lib" / "site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", str(wheel.resolve())], check=True)
    # After its own packages, so that an editable capfilt of this environment is not seen.
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).absolute())
