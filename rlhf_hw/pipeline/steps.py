"""The command of each step: what the pipeline gives it, and what the user gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launchers import LaunchRequest
from launchers.hosts import read_hostfile
from launchers.script_arguments import value_of
from rlhf_hw.arguments.presets import PRESETS
from rlhf_hw.pipeline.settings import STEPS, PipelineSettings, model_name, short_name

#: Folder of a step below --output-dir; the model's name follows.
FOLDERS = {1: "actor-models", 2: "reward-models", 3: "step3-models"}
#: The data set that DeepSpeed-Chat's train.py trains on.
DATASET = "Dahoas/rm-static"
_DATA_FLAGS = ("--dataset_name", "--data_path", "--train_file")
#: Steps between log lines of steps 1 and 2.
LOGGING_STEPS = 10
TITLES = {1: "supervised fine-tuning", 2: "reward model", 3: "PPO"}


@dataclass(frozen=True)
class Step:
    """One step: its command, the words after it, and the folder it writes."""

    number: int
    command: str
    words: tuple[str, ...]
    folder: Path

    @property
    def title(self) -> str:
        """step 2 (reward model)."""
        return f"step {self.number} ({TITLES[self.number]})"


def folder_of(settings: PipelineSettings, number: int) -> Path:
    """output/actor-models/1.3b, output/reward-models/350m, output/step3-models/1.3b."""
    options = settings.options
    model = options.reward_model if number == 2 else options.actor_model
    return Path(options.output_dir) / FOLDERS[number] / short_name(model)


def step_of(settings: PipelineSettings, number: int) -> Step:
    """The step as it would run from the beginning."""
    folder = folder_of(settings, number)
    words = [
        *_models(settings, number),
        *_common(settings, number),
        "--output_dir",
        str(folder),
        *settings.own[number],
    ]
    return Step(number, STEPS[number], tuple(words), folder)


def with_fitting_critic(settings: PipelineSettings, step: Step) -> Step:
    """Step 3, without the reward model as its critic's start where that reads other tokens than the policy: a critic reads
    the policy's. Told by the tokenizers that steps 1 and 2 have saved."""
    preset = PRESETS.get(settings.options.preset, {}).get("ppo", {})
    said = value_of(settings.own[3], "--init_value_with_reward") is not None
    if step.number != 3 or said or not preset.get("init_value_with_reward"):
        return step
    files = [folder_of(settings, number) / "tokenizer.json" for number in (1, 2)]
    texts = [file.read_bytes() if file.is_file() else b"" for file in files]
    if texts[0] == texts[1]:
        return step
    return replace(step, words=(*step.words, "--init_value_with_reward", "false"))


def launch_request(settings: PipelineSettings, step: Step, more: Sequence[str] = ()) -> LaunchRequest:
    """How the step's processes are started."""
    options = settings.options
    hosts = read_hostfile(options.hostfile) if options.hostfile else None
    return LaunchRequest(
        module=f"rlhf_hw.cli.{step.command}",
        script_args=(*step.words, *more),
        backend=options.device,
        processes=1 if options.deployment_type == "single_gpu" else None,
        machines=hosts,
        machine_rank=options.machine_rank,
        launcher=options.launcher,
    )


def _models(settings: PipelineSettings, number: int) -> list[str]:
    options = settings.options
    if number == 1:
        return ["--model_name_or_path", model_name(options.actor_model)]
    if number == 2:
        return ["--model_name_or_path", model_name(options.reward_model)]
    actor, reward = folder_of(settings, 1), folder_of(settings, 2)
    return ["--model_name", str(actor), "--reward_model_name", str(reward)]


def _common(settings: PipelineSettings, number: int) -> list[str]:
    options = settings.options
    words = ["--device", options.device, "--do_train", "--do_eval"]
    if number != 3 and "logging_steps" not in PRESETS.get(options.preset, {}).get(STEPS[number], {}):
        words += [
            "--logging_steps",
            str(LOGGING_STEPS),
        ]  # transformers' 500 leave no curve; PPO logs every update
    if options.preset != "none":
        words += ["--preset", options.preset]
    if options.seed is not None:
        words += ["--seed", str(options.seed)]
    own_data = any(value_of(settings.own[number], flag) is not None for flag in _DATA_FLAGS)
    if options.dataset_name:
        words += ["--dataset_name", *options.dataset_name]
    elif options.train_file is None and not own_data:
        words += ["--dataset_name", DATASET]
    for name in ("train_file", "validation_file"):
        if getattr(options, name) is not None:
            words += [f"--{name}", getattr(options, name)]
    if options.data_split != "none" and value_of(settings.own[number], "--data_split") is None:
        words += ["--data_split", options.data_split]
    return words + _zero(settings, number)


def _zero(settings: PipelineSettings, number: int) -> list[str]:
    """DeepSpeed's stages; stage 0 shares nothing and needs no DeepSpeed."""
    actor, reward = settings.options.actor_zero_stage, settings.options.reward_zero_stage
    stage = reward if number == 2 else actor
    words = ["--zero_stage", stage] if stage not in ("", "0") else []
    if number == 3 and reward not in ("", "0"):
        words += ["--critic_zero_stage", reward]
    return ["--deepspeed", *words] if words else []
