"""The commands of seed 002 as written there, and a place where the names in them exist.

Models and data set stand under their hub names below the working directory, where a local path beats the hub. So
nothing in a command changes but the number of processes, the access token, the doors' directory (`python` finds
them by path) and, for PPO, how long it runs: 20,000 samples by default.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from commands import SeedCommand

from launchers.hosts import free_port

DOORS = Path(__file__).parents[2]
TOKEN = "seeds-access-token-5d2c71"
PPO_DIRECTORY = "llama-se-rl-finetune-128-8-8-1.4e-5_adam"

SFT = """
torchrun --nnodes 1  --nproc_per_node 8  finetune_clm.py \
        --model_name_or_path "meta-llama/Llama-2-7b-chat-hf" \
        --bf16 True \
        --dataset_name "Intel/orca_dpo_pairs" \
        --dataset_concatenation \
        --per_device_train_batch_size 2 \
        --per_device_eval_batch_size 2 \
        --gradient_accumulation_steps 4 \
        --evaluation_strategy "no" \
        --save_strategy "steps" \
        --save_steps 2000 \
        --save_total_limit 1 \
        --learning_rate 1e-4  \
        --logging_steps 1 \
        --do_train \
        --num_train_epochs 3 \
        --overwrite_output_dir \
        --log_level info \
        --output_dir ./llama2_7b_se \
        --peft lora \
        --use_fast_tokenizer false \
        --use_auth_token True
"""
MERGE = "python3 merge_peft_adapter.py --adapter_model_name=../instruction/llama2_7b_se  --output_name=llama2_7b_se"
REWARD = """
torchrun --nnodes 1  --nproc_per_node 8  reward_modeling.py --model_name_or_path meta-llama/Llama-2-7b-hf
--output_dir llama2_7b_rm --log_level info  --num_train_epochs 3  --logging_steps 1  --per_device_train_batch_size 4
--hf_access_token xxxxxx
"""
PPO = """
accelerate launch --multi_gpu --num_machines 1  --num_processes 8 rl_training.py --log_with=wandb
--model_name=llama2_7b_se --reward_model_name=llama2_7b_rm --adafactor=False --tokenizer_name=llama2_7b_se
--save_freq=100 --output_max_length=128 --batch_size=8 --gradient_accumulation_steps=8 --batched_gen=True
--ppo_epochs=4 --seed=0 --learning_rate=1.4e-5 --early_stopping=True
--output_dir=llama-se-rl-finetune-128-8-8-1.4e-5_adam --hf_access_token xxxxxx
"""
MERGE_PPO = f"python3 merge_peft_adapter.py --adapter_model_name={PPO_DIRECTORY} --output_name=llama2_7b_rl"

COMMANDS = [
    SeedCommand("002 SFT, CUDA", "sft", None, SFT),
    SeedCommand("002 merge of SFT", "merge", None, MERGE),
    SeedCommand("002 reward model, CUDA", "reward", None, REWARD),
    SeedCommand("002 PPO, CUDA", "ppo", None, PPO),
]

#: The answers' columns, the better one first: the set's today, and those of its first version.
COLUMN_SETS = {"chosen": ("chosen", "rejected"), "chatgpt": ("chatgpt", "llama2-13b-chat")}
ROWS = 24


@dataclass
class Pipeline:
    """The seed's three stages and two merges, run one after the other in `instruction/` and `rlhf/` below `root`."""

    root: Path
    ppo_processes: int
    on_gaudi: bool = False
    commands: dict[str, str] = field(default_factory=dict)  #: stage → the command that was run
    outputs: dict[str, str] = field(default_factory=dict)  #: stage → what it printed
    seconds: dict[str, float] = field(default_factory=dict)  #: stage → wall time

    @property
    def sft(self) -> Path:
        return self.root / "instruction" / "llama2_7b_se"

    @property
    def merged_sft(self) -> Path:
        return self.root / "rlhf" / "llama2_7b_se"

    @property
    def reward(self) -> Path:
        return self.root / "rlhf" / "llama2_7b_rm"

    @property
    def ppo(self) -> Path:
        return self.root / "rlhf" / PPO_DIRECTORY

    @property
    def merged_ppo(self) -> Path:
        return self.root / "rlhf" / "llama2_7b_rl"

    def base(self, name: str) -> Path:
        return self.root / "rlhf" / "meta-llama" / name

    def metrics(self, stage: str) -> list[dict[str, float]]:
        """The rows of a stage's metrics.jsonl."""
        lines = (getattr(self, stage) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def run(self, stage: str, command: str, directory: str) -> None:
        """Run one command of the seed to its end; it must succeed."""
        started = time.monotonic()
        self.commands[stage] = command
        with subprocess.Popen(
            as_typed(command),
            cwd=self.root / directory,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=300)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # the launcher alone would leave its workers behind
                raise
        self.seconds[stage], self.outputs[stage] = time.monotonic() - started, output
        assert process.returncode == 0, f"{stage} ended with {process.returncode}:\n{output[-6000:]}"

    def _environment(self) -> dict[str, str]:
        """This process's, kept off the network, with caches of its own and with the programs of this Python first."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HOME": str(self.root / "hub"),
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "offline",
            "OMP_NUM_THREADS": "1",
            "PET_MASTER_PORT": str(free_port()),
        }


def as_typed(command: str) -> list[str]:
    """A command's words: for two processes, with our token, and with the doors where they are."""
    for flag in ("--nproc_per_node", "--world_size"):
        command = command.replace(f"{flag} 8", f"{flag} 2")
    words = shlex.split(command.replace("xxxxxx", TOKEN))
    return [str(DOORS / Path(word).name) if word.endswith(".py") else word for word in words]


def run_pipeline(root: Path, base_model: Path, columns: tuple[str, str], device_flag: str) -> Pipeline:
    """The seed's sections 3, 4 and 5 in order. `device_flag` is what stands in accelerate's `--multi_gpu`'s place."""
    make_places(root, base_model, columns)
    # accelerate does not look for a free port of its own accord, and starts a single process on --cpu
    launcher = f"{device_flag} --main_process_port 0"
    ppo = (
        PPO.replace("--multi_gpu", launcher)
        .replace("--num_processes 8", "--num_processes 2")
        .replace("--save_freq=100", "--save_freq=1")
    )
    pipeline = Pipeline(root, ppo_processes=1 if device_flag == "--cpu" else 2)
    samples = 16 * pipeline.ppo_processes  # two updates
    pipeline.run("sft", SFT, "instruction")
    pipeline.run("merged_sft", MERGE, "rlhf")
    pipeline.run("reward", REWARD, "rlhf")
    pipeline.run("ppo", f"{ppo} --steps {samples}", "rlhf")
    pipeline.run("merged_ppo", MERGE_PPO, "rlhf")
    return pipeline


def make_places(root: Path, base_model: Path, columns: tuple[str, str]) -> None:
    """`instruction/` and `rlhf/`, each with the base models and the data set under the names that the seed uses."""
    better, worse = columns
    rows = [
        {
            "system": "You are an AI assistant." if number % 2 else "",
            "question": f"How many are {number} apples and {number + 1} apples? Show the sum, step by step.",
            better: f"There are {2 * number + 1} apples, because {number} + {number + 1} = {2 * number + 1}.",
            worse: "I do not know, and I would not tell you if I knew.",
        }
        for number in range(ROWS)
    ]
    for place in ("instruction", "rlhf"):
        models = root / place / "meta-llama"
        models.mkdir(parents=True)
        for name in ("Llama-2-7b-hf", "Llama-2-7b-chat-hf"):
            (models / name).symlink_to(base_model)
        data = root / place / "Intel" / "orca_dpo_pairs"
        data.mkdir(parents=True)
        (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
