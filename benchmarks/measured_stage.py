"""One measured run of a stage, in a process (or one of several) of its own: the peak memory of each of its phases.

    python benchmarks/measured_stage.py RESULT.json cpu|hpu sft|reward|ppo FLAGS …

Under torchrun each process measures itself, and what the first wrote is the highest of all. `benchmarks/estimate.py` and
`benchmarks/estimate_fit.py` start it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


class Memory:
    """Peak bytes since `start`, by phase: of the process on a CPU, else of its device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.found: dict[str, int] = {}

    @staticmethod
    def _resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def start(self) -> None:
        if self.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")
        else:
            self._backend().reset_peak_memory()

    def stop(self, phase: str) -> None:
        peak = self._resident("VmHWM") if self.device == "cpu" else self._backend().memory_statistics().peak
        self.found[phase] = max(self.found.get(phase, 0), peak)

    @staticmethod
    def _backend() -> Any:
        from backends.hpu import HPUBackend

        return HPUBackend()


class _Trained(Exception):
    """Training has ended."""


def measure(result: Path, device: str, words: Sequence[str]) -> int:
    """Run a stage, and write the peak of each of its phases from the second optimizer step (PPO: update) on."""
    import torch
    from transformers import Trainer, TrainerCallback

    from rlhf_hw.cli import ppo, reward, sft
    from rlhf_hw.trainers import metrics

    stage, *flags = words
    module, mixin = {"sft": (sft, "SFTMixin"), "reward": (reward, "RewardMixin"), "ppo": (ppo, "PPOMixin")}[
        stage
    ]
    assert Trainer is not None
    memory = Memory(device)

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
            memory.start()

        def on_step_end(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
            if state.global_step > 1:
                memory.stop("optimise")

    class Watched(getattr(module, mixin)):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if stage != "ppo":
                self.add_callback(Watch())

        def train(self, *args: Any, **kwargs: Any) -> Any:
            super().train(*args, **kwargs)
            raise _Trained  # saving and statistics are not what is measured

    class WatchedTimer(metrics.PhaseTimer):
        updates = 0

        @contextmanager
        def phase(self, name: str) -> Iterator[None]:
            self.updates += name == "rollout"
            memory.start()
            with super().phase(name):
                yield
            if self.updates > 1:
                memory.stop(name)

        def open(self, name: str) -> None:
            if self._opened is None:
                memory.start()
            super().open(name)

        def close(self) -> None:
            if self._opened is not None and self.updates > 1:
                memory.stop(self._opened[0])
            super().close()

    setattr(module, mixin, Watched)
    if stage == "ppo":
        from rlhf_hw.trainers import ppo as trainer

        vars(trainer)["PhaseTimer"] = WatchedTimer
    try:
        return int(module.main(flags))
    except _Trained:
        rank, processes = (
            int(os.environ.get(name, first)) for name, first in (("RANK", 0), ("WORLD_SIZE", 1))
        )
        result.with_suffix(f".{rank}").write_text(json.dumps(memory.found))
        if processes > 1:
            torch.distributed.barrier()
        if rank == 0:
            all_of_them = [json.loads(result.with_suffix(f".{r}").read_text()) for r in range(processes)]
            result.write_text(
                json.dumps({name: max(one[name] for one in all_of_them) for name in memory.found})
            )
        return 0


if __name__ == "__main__":
    sys.exit(measure(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
