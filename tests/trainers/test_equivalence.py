"""However a step's examples are dealt out, over micro-batches or processes, it is the same step."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import all_stages
import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import pair_rows, ppo_settings, ppo_trainer, reward_trainer, roles, sft_trainer, weights

#: so that one step moves the weights by the gradient and nothing else
PLAIN = {
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "max_steps": 1,
}


def step(trainer: Any) -> dict[str, torch.Tensor]:
    """How far one step moves each weight: minus the gradient."""
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    return {name: after[name] - before[name] for name in before}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_sft_micro_batches_make_the_gradient_of_the_whole_batch(
    tmp_path: Path, architecture: str, batch: int, accumulation: int
) -> None:
    whole = step(
        sft_trainer(tmp_path / "1", tiny_model(architecture), per_device_train_batch_size=8, **PLAIN)
    )
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    parts = step(sft_trainer(tmp_path / "2", tiny_model(architecture), **options, **PLAIN))
    assert_close(parts, whole, 1e-6)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8)])
def test_reward_micro_batches_make_the_gradient_of_the_whole_batch(
    tmp_path: Path, batch: int, accumulation: int
) -> None:
    whole = step(reward_trainer(tmp_path / "1", tiny_model(labels=1), per_device_train_batch_size=8, **PLAIN))
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    parts = step(reward_trainer(tmp_path / "2", tiny_model(labels=1), **options, **PLAIN))
    assert_close(parts, whole, 1e-6)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("mini_batch", "accumulation"), [(4, 2), (1, 8)])
def test_ppo_micro_batches_make_the_gradient_of_the_whole_batch(
    tmp_path: Path, separate: bool, mini_batch: int, accumulation: int
) -> None:
    one = ppo_settings(mini_batch_size=8, ppo_epochs=1, steps=8)
    whole = step(ppo_trainer(tmp_path / "1", roles(separate=separate), one, **PLAIN))
    several = ppo_settings(mini_batch_size=mini_batch, ppo_epochs=1, steps=8)
    options = {"gradient_accumulation_steps": accumulation, **PLAIN}
    parts = step(ppo_trainer(tmp_path / "2", roles(separate=separate), several, **options))
    assert_close(parts, whole, 1e-6)


def test_a_last_step_with_fewer_micro_batches_counts_its_own_items(tmp_path: Path) -> None:
    """Five pairs in steps of four: the step of the one left over is as long as that pair's own."""
    options = {**PLAIN, "max_steps": 2, "learning_rate": 0.01}
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    parts = reward_trainer(tmp_path / "1", tiny_model(labels=1), pair_rows(5), **small, **options)
    whole = reward_trainer(
        tmp_path / "2", tiny_model(labels=1), pair_rows(5), per_device_train_batch_size=4, **options
    )
    assert_close(step(parts), step(whole), 1e-6)


def test_the_logged_loss_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    options = [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    ]
    losses = []
    for i, option in enumerate(options):
        trainer = sft_trainer(tmp_path / str(i), tiny_model(), **option, **PLAIN)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)  # the log rounds to four digits


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_recomputing_activations_changes_no_step(tmp_path: Path, stage: str) -> None:
    def make(directory: str, **options: Any) -> Any:
        options |= PLAIN
        if stage == "sft":
            return sft_trainer(tmp_path / directory, tiny_model(), **options)
        if stage == "reward":
            return reward_trainer(tmp_path / directory, tiny_model(labels=1), **options)
        return ppo_trainer(
            tmp_path / directory, roles(separate=True), ppo_settings(steps=8, ppo_epochs=1), **options
        )

    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    saving = make("2", **options)
    assert_close(step(saving), step(make("1")), 1e-6)
    switches = [
        m.gradient_checkpointing for m in saving.model.modules() if hasattr(m, "gradient_checkpointing")
    ]
    assert switches
    assert all(switches)


def test_one_process_drives_one_device_where_it_sees_four(tmp_path: Path) -> None:
    from tiny_runs import arguments
    from transformers import Trainer

    from rlhf_hw.trainers.sft import SFTMixin

    args = arguments(tmp_path)
    assert args.device.type == "cpu"
    args._n_gpu = 4
    trainer = type("SFT", (SFTMixin, Trainer), {})(model=tiny_model(), args=args)
    assert trainer.args.n_gpu == 1
    assert trainer.args.train_batch_size == 2


# --- two processes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_and_two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories with what `all_stages.py` left in one process and in two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), str(here.parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    launch = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    done = subprocess.run(
        [*launch, str(here / "all_stages.py"), str(two)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    all_stages.main(one)
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("stage", all_stages.STAGES)
def test_two_processes_train_as_one(one_and_two_processes: tuple[Path, Path], stage: str) -> None:
    one, two = (torch.load(path / f"{stage}.pt") for path in one_and_two_processes)
    assert_close(two["weights"], one["weights"], 2e-6)
    assert len(one["logs"]) == len(two["logs"]) == 3
    for expected, found in zip(one["logs"], two["logs"], strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            if not name.startswith(("time/", "speed/")):
                assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", all_stages.STAGES)
def test_two_processes_evaluate_as_one(one_and_two_processes: tuple[Path, Path], stage: str) -> None:
    """Also where the examples cannot be dealt out evenly."""
    one, two = (torch.load(path / f"{stage}.pt")["evaluation"] for path in one_and_two_processes)
    for name, value in one.items():
        if not name.endswith(("runtime", "per_second", "_time")):
            assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_processes_may_roll_out_for_different_lengths(one_and_two_processes: tuple[Path, Path]) -> None:
    """None waits in a rollout for another, whichever engine draws."""
    longest = torch.load(one_and_two_processes[1] / "ppo.pt")["longest"]
    assert longest == {engine.__name__: [1, 12] for engine in all_stages.engines()}
    assert len(longest) > 1
