"""Who serves and who trains, against what the requirements say and arithmetic by hand."""

import itertools
from pathlib import Path

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.launch.allocation import (
    Allocation,
    NodeShare,
    expand_hostlist,
    read_allocation,
    split,
    visible_gpus,
)


def allocation(nodes: int, gpus: int) -> Allocation:
    return Allocation(tuple(f"n{i}" for i in range(nodes)), tuple(map(str, range(gpus))), "1")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("gpu[008-010,12],login", ["gpu008", "gpu009", "gpu010", "gpu12", "login"]),
        ("a[1-2]-x[7,9]", ["a1-x7", "a1-x9", "a2-x7", "a2-x9"]),
        ("n1,n3", ["n1", "n3"]),
    ],
)
def test_node_names_expand_as_slurm_writes_them(text: str, names: list[str]) -> None:
    assert list(expand_hostlist(text)) == names


def test_devices_come_from_the_variable_then_slurm_then_the_machine(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ("0", "2", "10")
    assert visible_gpus({"SLURM_GPUS_ON_NODE": "2"}, tmp_path) == ("0", "1")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "4,7", "SLURM_GPUS_ON_NODE": "8"}, tmp_path) == ("4", "7")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()
    assert visible_gpus({"GPUS_PER_NODE": "2"}, tmp_path) == ("0", "2")
    with pytest.raises(UsageError, match=r"GPUS_PER_NODE=4: this node shows 3"):
        visible_gpus({"GPUS_PER_NODE": "4"}, tmp_path)


def test_a_job_is_read_from_slurms_variables(tmp_path: Path) -> None:
    environ = {
        "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": "3", "CUDA_VISIBLE_DEVICES": "0,1",
    }  # fmt: skip
    assert read_allocation(environ, tmp_path) == Allocation(("n1", "n2"), ("0", "1"), "42", 3, None)
    assert read_allocation({}, tmp_path) == Allocation(("localhost",), ())


def test_on_one_node_gpu_0_serves_and_the_rest_train() -> None:
    found = split(allocation(1, 8), "server", dp=1, tp=1, local_processes=None)
    assert found.serving == NodeShare("n0", ("0",), 1)
    assert found.training == (NodeShare("n0", ("1", "2", "3", "4", "5", "6", "7"), 7),)


def test_of_several_nodes_the_last_serves() -> None:
    found = split(allocation(3, 4), "server", dp=2, tp=2, local_processes=None)
    assert found.serving == NodeShare("n2", ("0", "1", "2", "3"), 1)
    assert [share.node for share in found.training] == ["n0", "n1"]
    assert found.world_size == 8
    assert found.idle == ()


def test_gpus_that_nothing_uses_are_named() -> None:
    assert split(allocation(2, 4), "server", dp=1, tp=1, local_processes=None).idle == (
        ("n1", ("1", "2", "3")),
    )


@pytest.mark.parametrize("sampling", ["in-process", "colocate"])
def test_without_a_server_every_gpu_trains(sampling) -> None:
    found = split(allocation(1, 4), sampling, dp=1, tp=1, local_processes=None)
    assert (found.serving, found.world_size) == (None, 4)


def test_a_cpu_node_serves_and_trains() -> None:
    found = split(allocation(1, 0), "server", dp=1, tp=1, local_processes=2)
    assert (found.serving, found.training) == (NodeShare("n0", (), 1), (NodeShare("n0", (), 2),))


@pytest.mark.parametrize(
    ("nodes", "gpus", "sampling", "sizes", "message"),
    [
        (1, 1, "server", {}, "one node with 1 GPU"),
        (1, 2, "server", {"dp": 2}, "none is left to train"),
        (2, 4, "server", {"dp": 3, "tp": 2}, r"--dp 3 × --tp 2 = 6 GPUs for the server, and a node has 4"),
        (2, 8, "colocate", {}, "colocate runs on one node"),
        (1, 4, "server", {"local_processes": 4}, r"TRAIN_LOCAL_PROCS=4: n0 has 3"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(nodes, gpus, sampling, sizes, message) -> None:
    with pytest.raises(UsageError, match=message):
        split(allocation(nodes, gpus), sampling, **{"dp": 1, "tp": 1, "local_processes": None, **sizes})


def test_no_gpu_is_given_twice_and_none_is_forgotten() -> None:
    for nodes, gpus, sampling, dp, tp in itertools.product(
        (1, 2, 5), (0, 1, 2, 8), ("in-process", "server", "colocate"), (1, 2, 4), (1, 2)
    ):
        given = allocation(nodes, gpus)
        try:
            found = split(given, sampling, dp=dp, tp=tp, local_processes=None)
        except UsageError:
            continue
        shares = [*found.training, *([found.serving] if found.serving else [])]
        used = [(share.node, gpu) for share in shares for gpu in share.gpus]
        used += [(node, gpu) for node, idle in found.idle for gpu in idle]
        assert sorted(used) == sorted(itertools.product(given.nodes, given.gpus))
        assert len({share.processes for share in found.training}) == 1
        assert found.world_size == sum(max(1, len(share.gpus)) for share in found.training)
