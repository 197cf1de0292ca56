"""The commands of seeds 000, 001, 003 and 004 run to their end on tiny models, one after the other, and leave what they should.

On the CPU and on the Gaudi: here its emulator. As written, but for what `trials.py` changes. One process each is a fork of
a process that has imported everything; those that their launcher starts are processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import left
import pytest
import record
import yaml
from judge_server import judge_server
from places import make_places
from running import LONGEST, ROOT, Runner, environment_for, preload_for
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import PreTrainedTokenizerFast
from trials import CHAINS, STEP_1, STEP_2, STEP_3
from warm_process import WarmProcess, warm_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module", params=["cpu", "hpu"])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def environment(device: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment_for(device, tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module")
def warm(device: str, environment: dict[str, str]) -> Iterator[WarmProcess]:
    with warm_process(preload_for(device), environment) as process:
        yield process


@pytest.fixture
def runner(
    device: str,
    warm: WarmProcess,
    environment: dict[str, str],
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> Runner:
    """In an empty place where the names of the commands exist."""
    make_places(tmp_path, tiny_tokenizer)
    monkeypatch.chdir(tmp_path)
    return Runner(device, tmp_path, warm, environment)


@pytest.mark.parametrize("chain", CHAINS)
def test_every_command_runs_to_its_end_and_leaves_what_it_should(chain: str, runner: Runner) -> None:
    with judge_server() as (url, _):
        runner.environment |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-of-the-test"}
        for trial in CHAINS[chain]:
            runner.run(trial)
    MORE[chain](runner)
    record.hold(runner.device, runner.ran)


def adapted_layers(directory: str) -> set[str]:
    return {
        name.split(".")[-3]
        for name in load_file(Path(directory) / "adapter_model.safetensors")
        if "lora_A" in name
    }


def updates(directory: str) -> list[dict[str, float]]:
    return [row for row in left.metrics(Path(directory)) if "objective/kl" in row]


def more_of_000(runner: Runner) -> None:
    for directory in ("rlhf/actor", "rlhf/critic", "rlhf/final/critic"):
        assert adapted_layers(directory) == {"q_proj", "k_proj"}, directory
    assert adapted_layers("rlhf/final") == {"q_proj"}
    # a fifth of 20 prompts in one rollout, 2 epochs of one step
    assert [row["step"] for row in updates("rlhf/final")] == [2]


def more_of_001(runner: Runner) -> None:
    blocks = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    assert adapted_layers("output/actor-models/1.3b") == {*blocks, "project_in", "project_out"}
    losses = [
        row["eval_loss"] for row in left.metrics(Path("output/actor-models/1.3b")) if "eval_loss" in row
    ]
    assert losses[-1] < losses[0]
    final = yaml.safe_load(Path("output/step3-models/1.3b/config.yaml").read_text())
    assert final["stage"]["generation_batches"] == 2
    # 8 of 20 prompts in one update of 16 answers
    assert [row["ppo/episodes"] for row in updates("output/step3-models/1.3b")] == [16]


def more_of_003(runner: Runner) -> None:
    assert adapted_layers("weights") == {"q_proj", "k_proj", "v_proj", "o_proj"}
    # 6 passes over 8 prompts, 16 an update; 2 epochs of 2 steps
    assert [row["step"] for row in updates("weights")] == [4, 8, 12]
    saved = {path.name for path in Path("weights").glob("checkpoint-*")}
    assert {"checkpoint-4", "checkpoint-8"} <= saved  # update 1, and the second
    measured = [row["step"] for row in left.metrics(Path("weights")) if "eval_scores" in row]
    assert measured[1] == 12  # after update 3
    assert "Follow the request." in Path("weights/samples.jsonl").read_text()  # --prompt_dict_path


def more_of_004(runner: Runner) -> None:
    """What `tensorboard --logdir` shows: step 2 names a directory of its own."""
    for folder, log in ((STEP_1, "step1_tensorboard"), (STEP_2, "output"), (STEP_3, "step3_tensorboard")):
        assert_in_tensorboard(Path(folder) / log, Path(folder) / "output")


def more_of_the_pipeline(runner: Runner) -> None:
    assert sorted(path.name for path in Path("output/step3-models").iterdir()) == ["1.3b", "13b"]
    assert (
        len(list(Path("output/reward-models").iterdir())) == 1
    )  # the second command takes that of the first


MORE: dict[str, Callable[[Runner], None]] = {
    "000": more_of_000,
    "001": more_of_001,
    "003": more_of_003,
    "004": more_of_004,
    "004 pipeline": more_of_the_pipeline,
}


def test_tensorboards_log_stands_where_it_was_asked_for(runner: Runner) -> None:
    words = [
        "--model_name_or_path",
        "sft10k/dir",
        "--dataset_name",
        "Dahoas/rm-static",
        "--output_dir",
        "run",
    ]
    words += [
        "--max_steps",
        "2",
        "--logging_steps",
        "1",
        "--report_to",
        "tensorboard",
        "--logging_dir",
        "curves/a",
    ]
    words += ["--device", runner.device]
    output = runner.place / "output.txt"
    status = runner.warm.run(
        ROOT / "finetune_clm.py", *words, environment=runner.environment, output=output, timeout=LONGEST
    )
    assert status == 0, output.read_text()[-4000:]
    assert_in_tensorboard(Path("curves/a"), Path("run"))


#: Beside PPO's; an evaluation that is repeated at its step, as at the end of a run, comes to the same numbers.
COMPARED = {"loss", "grad_norm", "learning_rate", "train_loss", "eval_loss", "eval_accuracy"}


def assert_in_tensorboard(log: Path, run: Path) -> None:
    """The numbers of a run's own log are in its TensorBoard log too, at the same steps."""
    events = EventAccumulator(str(log)).Reload()
    logged = {
        (name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)
    }
    seen = set()
    for row in left.metrics(run):
        for name, value in row.items():
            group, _, rest = name.partition("_")
            tag = f"eval/{rest}" if group == "eval" else f"train/{name}"
            if name in COMPARED or name.startswith(("objective/", "policy/", "value/")):
                assert logged[tag, row["step"]] == pytest.approx(value, rel=1e-5), name
                seen.add(name)
    assert "train_loss" in seen
