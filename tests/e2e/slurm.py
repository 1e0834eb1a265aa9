"""A SLURM cluster of this machine alone, for as long as a test needs it (Debian's slurm-wlm)."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_DAEMONS: Final = ("munged", "slurmctld", "slurmd")
_SECONDS: Final = 30.0


def why_not() -> str | None:
    """Return why there can be no cluster here, or None."""
    missing = [name for name in _DAEMONS if _tool(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm"
    return None if os.geteuid() == 0 else "slurmd wants to be root"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment in which `sbatch` and `squeue` find a cluster of one node."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(_configuration(folder), encoding="ascii")
    own = {name: f"--{name}-file={folder / name}" for name in ("key", "pid", "log", "seed")}
    own["key"] = f"--key-file={key}"
    munge = [str(_tool("munged")), "--foreground", "--force", f"--socket={folder / 'socket'}"]
    commands = [
        [*munge, *own.values()],
        [str(_tool("slurmctld")), "-D", "-f", str(conf)],
        [str(_tool("slurmd")), "-D", "-f", str(conf)],
    ]
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    with contextlib.ExitStack() as held:
        for command in commands:
            held.enter_context(_daemon(command, folder))
        _wait_for_node(environment)
        yield environment


@contextlib.contextmanager
def _daemon(command: list[str], folder: Path) -> Iterator[None]:
    log = (folder / "daemons.log").open("ab")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.kill()


def _wait_for_node(environment: dict[str, str]) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        told = subprocess.run(
            ["sinfo", "-h", "-o", "%T"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if "idle" in told.stdout:
            return
        time.sleep(0.2)
    raise RuntimeError(f"the SLURM node does not come up: {told.stdout}{told.stderr}")


def _configuration(folder: Path) -> str:
    host = socket.gethostname().partition(".")[0]
    ports = [_free_port() for _ in range(2)]
    lines = {
        "ClusterName": "capfilt",
        "SlurmctldHost": host,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder / 'socket'}",
        "CryptoType": "crypto/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldPort": ports[0],
        "SlurmdPort": ports[1],
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "MpiDefault": "none",
        "ReturnToService": "2",
        "NodeName": f"{host} CPUs={os.cpu_count()} State=UNKNOWN",
        "PartitionName": "all Nodes=ALL Default=YES State=UP",
    }
    for name in ("state", "spool"):
        (folder / name).mkdir()
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
