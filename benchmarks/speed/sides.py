"""The sides of the comparison, and the process in which each takes its turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ROOT / "build" / "peers"
#: what would change what a side imports, or the precision it is told
LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "ACCELERATE_MIXED_PRECISION")
PLAIN = {"bf16": False, "gradient_checkpointing": False}


@dataclass(frozen=True)
class Side:
    """One trainer with its settings. `passes`: forward passes of (trunk, head) that scoring takes, `trunks` that train."""

    name: str
    program: str
    job: dict[str, Any] = field(default_factory=dict)
    python: Path = Path(sys.executable)
    path: Path | None = None  #: before everything else that can be imported
    passes: tuple[int, int] = (0, 0)
    trunks: int = 1
    bf16: bool = False


def sides() -> dict[str, Side]:
    """All sides by name."""
    separate = ["--value_model", "separate", "--critic_model_name", "{materials}/reward"]
    fp32, bf16 = ["--bf16", "False"], ["--bf16", "True"]
    packed = ["--packing", "True", "--max_seq_length", "512", "--per_device_train_batch_size", "4"]
    found = [
        Side("TRL 1.12 PPO", "trl_ppo.py", path=PEERS / "trl-1.12", passes=(3, 1), trunks=2),
        Side("TRL 0.11.4 PPO", "trl_classic.py", python=PEERS / "classic" / "bin" / "python"),
        Side(
            "separate bf16",
            "ours.py",
            {"stage": "ppo", "flags": separate + bf16},
            passes=(4, 2),
            trunks=2,
            bf16=True,
        ),
        Side("shared bf16", "ours.py", {"stage": "ppo", "flags": bf16}, passes=(3, 2), bf16=True),
        Side("separate fp32", "ours.py", {"stage": "ppo", "flags": separate + fp32}, passes=(4, 2), trunks=2),
        Side("shared fp32", "ours.py", {"stage": "ppo", "flags": fp32}, passes=(3, 2)),
        Side("TRL SFT fp32", "trl_trainers.py", {"stage": "sft", "settings": PLAIN}),
        Side(
            "TRL SFT packed fp32",
            "trl_trainers.py",
            {"stage": "sft", "settings": {**PLAIN, "packing": True, "per_device_train_batch_size": 4}},
        ),
        Side("TRL SFT defaults", "trl_trainers.py", {"stage": "sft", "settings": {}}),
        Side("SFT fp32", "ours.py", {"stage": "sft", "flags": fp32}),
        Side("SFT packed fp32", "ours.py", {"stage": "sft", "flags": fp32 + packed}),
        Side("SFT defaults", "ours.py", {"stage": "sft", "flags": []}, bf16=True),
        Side("TRL RM fp32", "trl_trainers.py", {"stage": "reward", "settings": PLAIN}),
        Side("TRL RM defaults", "trl_trainers.py", {"stage": "reward", "settings": {}}),
        Side("RM fp32", "ours.py", {"stage": "reward", "flags": fp32}),
        Side("RM defaults", "ours.py", {"stage": "reward", "flags": []}),
    ]
    return {side.name: side for side in found}


def torchrun(processes: int) -> list[str]:
    """What stands between `python` and a program that so many processes of this machine are to run."""
    if processes == 1:
        return []
    # Without --local_addr the workers would look up the host name, which many containers cannot resolve.
    several = ["--standalone", "--local_addr=127.0.0.1", f"--nproc_per_node={processes}"]
    return ["-m", "torch.distributed.run", *several]


class Running:
    """A side in its process (or `processes`, started by torchrun), waiting for turns. What it prints goes to a log file.

    Of each of the `materials` in turn it says what the losses of `check_batch` rows were, and can then be asked for
    `turns` turns; the next `turn` is the next materials' losses.
    """

    def __init__(
        self,
        side: Side,
        materials: Sequence[Path],
        turns: int,
        log: Path,
        *,
        processes: int = 1,
        check_batch: int = 8,
    ) -> None:
        self.side = side
        self.log = log
        job = {
            "materials": [str(directory) for directory in materials],
            "turns": turns,
            "check_batch": check_batch,
            **side.job,
        }
        environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        if side.path is not None:
            environment["PYTHONPATH"] = str(side.path)
        command = [str(side.python), *torchrun(processes), str(HERE / side.program), json.dumps(job)]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        #: what it said when it was ready for the first materials
        self.ready: dict[str, Any] = {}

    def wait_until_ready(self) -> None:
        """It has started, and checked its losses. Several sides may start at once: nothing of this is measured."""
        self.ready = self._answer()

    def turn(self) -> dict[str, Any]:
        """What one turn of work did and cost."""
        with suppress(BrokenPipeError):  # it has ended, which its answer tells
            self._pipe(self.process.stdin).write("go\n")
            self._pipe(self.process.stdin).flush()
        return self._answer()

    def stop(self) -> None:
        """End its process: at once where it waits for a turn, and soon where it is in one."""
        if self.process.poll() is None:
            self._pipe(self.process.stdin).close()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.terminate()
                self.process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._pipe(self.process.stdout).readline()
        if not line:
            tail = "\n".join(self.log.read_text().splitlines()[-15:])
            sys.exit(f"{self.side.name}: ended by itself; the end of {self.log}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe
