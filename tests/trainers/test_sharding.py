"""Training is the same however DeepSpeed or FSDP shares a model among two processes, and what it saves is whole."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("DeepSpeed is not installed", allow_module_level=True)

import sharded_stages

pytestmark = pytest.mark.slow
FILES = (
    *("adapter_model.safetensors", "model.safetensors"),
    *("critic/model.safetensors", "critic/adapter_model.safetensors", "value_head.safetensors"),
)
SHARED = [(stage, way) for stage, way in sharded_stages.TRAINED if way != "ddp"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every stage was trained in every way, by two processes."""
    directory = tmp_path_factory.mktemp("sharded")
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), str(here.parent.parent)])
    launch = [*(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone")]
    done = subprocess.run(
        [*launch, "--nproc_per_node", "2", str(here / "sharded_stages.py"), str(directory)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


def saved_files(directory: Path) -> list[str]:
    """The weights that the end of a training left."""
    return [name for name in FILES if (directory / name).is_file()]


@pytest.mark.parametrize(("stage", "way"), SHARED)
def test_sharing_changes_no_number_of_a_training(trained: Path, stage: str, way: str) -> None:
    plain, shared = (torch.load(trained / f"{stage}-{name}.pt") for name in ("ddp", way))
    assert len(shared["logs"]) == len(plain["logs"]) == 3
    for expected, found in zip(
        [*plain["logs"], plain["evaluation"]], [*shared["logs"], shared["evaluation"]], strict=True
    ):
        for name, value in expected.items():
            if name == "grad_norm" and way == "zero0":
                continue  # DeepSpeed tells none
            if not name.startswith(("time/", "speed/")) and not name.endswith(
                ("runtime", "per_second", "_time")
            ):
                assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(("stage", "way"), SHARED)
def test_what_is_saved_is_whole_and_the_same(trained: Path, stage: str, way: str) -> None:
    plain, shared = trained / f"{stage}-ddp", trained / f"{stage}-{way}"
    files = saved_files(plain)
    assert files
    assert files == saved_files(shared)
    for file in files:
        expected, found = load_file(plain / file), load_file(shared / file)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )


@pytest.mark.parametrize(("stage", "way"), [case for case in SHARED if case[0].startswith("ppo")])
def test_a_rollout_gathers_the_weights_beforehand_and_no_process_waits_in_it(
    trained: Path, stage: str, way: str
) -> None:
    ranks = torch.load(trained / f"{stage}-{way}.pt")["gathers"]
    assert [rank["rollouts"] for rank in ranks] == [3, 3]
    assert [rank["in a rollout"] for rank in ranks] == [0, 0]
    assert all(rank["whole"] for rank in ranks)
    assert ranks[0]["lengths"] != ranks[1]["lengths"]


@pytest.mark.parametrize(("stage", "way"), sharded_stages.RESUMED)
def test_a_shared_run_resumes_to_the_same_weights(trained: Path, stage: str, way: str) -> None:
    differences = torch.load(trained / f"{stage}-{way}.pt")["resumed"]
    assert differences
    assert set(differences.values()) == {0.0}


@pytest.mark.parametrize("way", sharded_stages.SPOILED)
def test_no_process_steps_along_a_gradient_that_is_no_number(trained: Path, way: str) -> None:
    for found in torch.load(trained / "spoiled.pt"):
        assert found[way] == {"finite": True, "skipped": 1}
