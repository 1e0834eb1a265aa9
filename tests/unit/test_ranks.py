"""Jobs over one run folder: whose work is whose, and who tells a job its number."""

import shlex
from pathlib import Path

import pytest
import yaml

from capfilt.commands import Hardware
from capfilt.engine.ranks import ARRAYS, rank_of, rank_order, rank_slice
from capfilt.errors import InputError
from capfilt.flags import flags_of

SHARDS = [str(i) for i in range(11)]


def test_slices_share_the_shards_without_overlap() -> None:
    slices = [rank_slice(SHARDS, rank, 3) for rank in range(3)]
    assert sorted((shard for own in slices for shard in own), key=int) == SHARDS


def test_a_rank_does_its_own_first_and_then_all_others_in_an_order_of_its_own() -> None:
    missing = set(SHARDS) - {"3", "4"}
    orders = [rank_order(SHARDS, missing, rank, 3) for rank in range(3)]
    for rank, order in enumerate(orders):
        own = [shard for shard in rank_slice(SHARDS, rank, 3) if shard in missing]
        assert order[: len(own)] == own
        assert sorted(order) == sorted(missing)
    left = ["1", "2", "5", "7", "8", "10"]  # of others than rank 0, for it and a fourth
    assert orders[0][-6:] != [s for s in rank_order(SHARDS, missing, 3, 4) if s in left]
    assert rank_order(SHARDS, missing, 1, 3) == orders[1]


@pytest.mark.parametrize(
    ("environment", "world_size", "expected"),
    [
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}, None, (7, 4)),
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}
            | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
            None,
            (2, 4),
        ),
        ({"JOB_COMPLETION_INDEX": "3"}, 8, (3, 8)),
        ({"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "16"}, None, (3, 16)),
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}, None, (1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, None, (1, 2)),
    ],
)
def test_launchers_tell_rank_and_world_size(
    environment: dict[str, str], world_size: int | None, expected: tuple[int, int]
) -> None:
    assert rank_of(environment, world_size) == expected
    how = Hardware(engine="ranks", world_size=world_size)
    assert how.place(environment) == expected
    assert Hardware(engine="ranks", rank=5, world_size=9).place(environment) == (5, 9)
    assert Hardware().place(environment) == (0, 1)  # a launcher counts where it is asked for


def test_a_launcher_that_tells_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="finds none of SLURM_ARRAY_TASK_ID, JOB_COMPLETION"):
        rank_of({})
    with pytest.raises(InputError, match="JOB_COMPLETIONS is not; give --world-size"):
        rank_of({"JOB_COMPLETION_INDEX": "3"})
    with pytest.raises(InputError, match="'x', which is no number"):
        rank_of({"RANK": "x", "WORLD_SIZE": "2"})
    assert len({array.number for array in ARRAYS}) == len(ARRAYS)


CLUSTER = Path(__file__).parents[2] / "pipelines" / "cluster"


def test_the_kubernetes_manifest_tells_what_the_ranks_ask() -> None:
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())["spec"]
    (container,) = job["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert job["completionMode"] == "Indexed"
    last = str(job["completions"] - 1)
    place = rank_of({**environment, "JOB_COMPLETION_INDEX": last})
    assert place == (job["completions"] - 1, job["completions"])
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [InputError.exit_code]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    check_flags(container["command"])


def test_the_skypilot_file_starts_a_rank_a_node() -> None:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    assert task["num_nodes"] > 1
    check_flags(shlex.split(task["run"]))


def check_flags(words: list[str]) -> None:
    """Check that a command is one of ours, for ranks, with flags that there are."""
    assert words[:2] == ["capfilt", "run"]
    flags = {word for word in words if word.startswith("--")}
    known = flags_of(Hardware).keys() | {"run", "quiet"}
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags} <= known
    assert words[words.index("--engine") + 1] == "ranks"
