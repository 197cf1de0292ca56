"""Running the seeds' commands in a place, on a device: in forks of a warm process, or by their own launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import left
import record
from commands import DOORS, TRAINING
from trials import Trial
from warm_process import WarmProcess

from launchers.hosts import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: What the warm process imports. Curves take most of the time of runs as short as these; tests/report and test_seed_002.py
#: draw them.
PRELOAD = (
    f"import sys; sys.path.append({str(HERE)!r}); import deepspeed, forked_steps, rlhf_hw.report.report as report; "
    "import rlhf_hw.cli.sft, rlhf_hw.cli.reward, rlhf_hw.cli.ppo, rlhf_hw.cli.infer, rlhf_hw.cli.judge, rlhf_hw.cli.compare; "
    "import rlhf_hw.cli.score, rlhf_hw.cli.chat; report.draw_plots = lambda rows, directory, name: []"
)
OPTIMUM = "; from backends.optimum_habana import optimum_habana; optimum_habana()"
PROCESSES = 2
#: Seconds for a command. The first with DeepSpeed compiles its communication library on the CPU, and whoever is killed in
#: that leaves a lock for which every later one waits.
LONGEST = 600


def preload_for(device: str) -> str:
    """What a warm process for a device imports."""
    return PRELOAD + (OPTIMUM if device == "hpu" and record.GAUDI_STACK else "")


def environment_for(device: str, caches: Path) -> dict[str, str]:
    """Of every command: kept off the network, with caches of its own and this Python's programs first."""
    lazy = {"PT_HPU_LAZY_MODE": "1" if record.GAUDI_STACK else "0", "HPU_EMULATOR_DEVICES": str(PROCESSES)}
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(caches / "hub"),
        "HF_DATASETS_CACHE": str(caches / "data"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        "DS_ACCELERATOR": device,
        **({"RLHF_HW_DEVICE": "cpu"} if device == "cpu" else lazy),
    }


class Runner:
    """Runs commands in a place, on a device."""

    def __init__(self, device: str, place: Path, warm: WarmProcess, environment: dict[str, str]) -> None:
        self.device, self.place, self.warm, self.environment = device, place, warm, environment
        self.output = place / "output.txt"
        self.ran: dict[str, record.Ran] = {}

    def run(self, trial: Trial) -> None:
        """Run a command to its end, and see what it left."""
        words = [*trial.words(), *(["--device", "hpu"] if self.device == "hpu" else [])]
        launcher = trial.command.launcher()
        directory = self.place / trial.directory
        if self.device in trial.launched_on:
            status = self._launch(launcher, [str(ROOT / DOORS[trial.command.stage]), *words], directory)
        else:
            status = self._fork(trial, words, directory, under_deepspeed="deepspeed" in launcher)
        said = self.output.read_text()
        assert status == 0, f"{trial.command.name}: {said[-6000:]}"
        os.chdir(directory)
        try:
            ran = self._see(trial, said)
        finally:
            os.chdir(self.place)
        self.ran[trial.command.name] = {**ran, "changed": [f"{k} {v}" for k, v in trial.flags.items()]}

    def _fork(self, trial: Trial, words: list[str], directory: Path, *, under_deepspeed: bool) -> int:
        environment, typed = dict(self.environment), self.place / "typed.txt"
        typed.write_text(trial.typed)
        if under_deepspeed:  # what its launcher would set
            environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        door = ROOT / DOORS[trial.command.stage]
        return self.warm.run(
            door,
            *words,
            environment=environment,
            output=self.output,
            timeout=LONGEST,
            directory=directory,
            typed=typed,
        )

    def _launch(self, launcher: list[str], words: list[str], directory: Path) -> int:
        """By the launcher of the command itself."""
        assert launcher[:2] == ["deepspeed", "--num_gpus"]
        front = [*launcher[:2], str(PROCESSES), "--master_port", str(free_port())]
        with (
            open(self.output, "w") as output,
            subprocess.Popen(
                [*front, *words],
                cwd=directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                return process.wait(timeout=LONGEST)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # the launcher alone would leave its workers behind
                raise

    def _see(self, trial: Trial, said: str) -> record.Ran:
        """How many processes ran, started by what, and what they left."""
        stage, processes = trial.command.stage, PROCESSES if self.device in trial.launched_on else 1
        if stage in TRAINING:
            written = Path(trial.writes)
            found = left.by_a_stage(written, stage, self.device)
            assert json.loads((written / "environment.json").read_text())["processes"] == processes
        else:
            found = left.BY_A_TOOL[stage](Path(trial.writes), said, self.device)
        by = "deepspeed" if self.device in trial.launched_on else "plain"
        return {"processes": processes, "by": by, "left": found}
