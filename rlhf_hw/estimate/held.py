"""What is held from step to step beside the weights, and what processes share of it: arithmetic, nothing is run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sharding import deepspeed_is_bare, is_off, read_config, zero_stage
from rlhf_hw.errors import UserError
from rlhf_hw.estimate.live_bytes import GRADIENTS, Bytes
from rlhf_hw.estimate.roles import Conditions, Weights

OPTIMIZER, MASTER, AVERAGE, BUCKETS = "optimizer state", "master copies", "averaged weights", "buckets"
SCRATCH = "optimizer scratch"
#: elements that DeepSpeed reduces at a time, where its configuration does not say
REDUCE_BUCKET = 500_000_000


def optimizer_bytes(name: str, trained: tuple[tuple[int, ...], ...]) -> int:
    """Bytes of an optimizer's state of fp32 weights of these shapes.

    AdamW: two numbers a weight in fp32. Its 8-bit version: two in one byte each. Adafactor: a number a row and a column
    of each matrix, one a weight of what is none. SGD: none.

    Raises:
        UserError: its state is not known here.
    """
    count = sum(_size(shape) for shape in trained)
    if name.startswith(("adamw_8bit", "adamw_bnb", "paged_adamw_8bit")):
        return 2 * count
    if name.startswith(("adamw", "paged_adamw", "adam")):
        return 8 * count
    if name == "adafactor":
        return 4 * sum(_size(s) // s[-1] + _size(s) // s[-2] if len(s) > 1 else _size(s) for s in trained)
    if name == "sgd":
        return 0
    raise UserError(
        f"--optim {name}: what it keeps is not known to estimate; ask with adamw_torch, adafactor or sgd"
    )


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


@dataclass(frozen=True)
class Sharing:
    """How many processes there are, and what they share: DeepSpeed's stage, None without it."""

    processes: int
    stage: int | None
    bucket: int = REDUCE_BUCKET
    offload: bool = False  #: optimizer's state in the host's memory, at stage 3 the weights too

    @classmethod
    def of(cls, run: Run, processes: int) -> Sharing:
        if not is_off(run.training.fsdp):
            raise UserError(
                "--fsdp: what it shares is not estimated yet; ask with --deepspeed --zero_stage 3 in its place"
            )
        stage, said = zero_stage(run), run.training.deepspeed
        if is_off(said):
            return cls(processes, None)
        zero = {} if deepspeed_is_bare(said) else read_config(said).get("zero_optimization", {})
        bucket = zero.get("reduce_bucket_size", REDUCE_BUCKET)
        offload = run.sharding.offload or "offload_optimizer" in zero
        return cls(processes, stage, int(bucket) if bucket != "auto" else REDUCE_BUCKET, offload)

    def divided(self, size: int, since: int) -> int:
        """`size`, or a process's part of it, from DeepSpeed's stage `since` on."""
        return -(-size // self.processes) if self.stage is not None and self.stage >= since else size

    def within_step(self, there: Bytes) -> Bytes:
        """What lives at a moment, of which the gradients may be shared."""
        return Counter({**there, GRADIENTS: self.divided(there[GRADIENTS], 2)})

    def held(self, run: Run, conditions: Conditions, trained: Weights, policy: Weights) -> Bytes:
        """What a process holds from step to step beside weights. `trained`: of all roles that train together."""
        found: Bytes = Counter()
        state = optimizer_bytes(optimizer_name(run), trained.matrices)
        shared = self.stage is not None and self.stage >= 1
        if not (shared and self.offload):
            found[OPTIMIZER] = self.divided(state, 1)
            found[MASTER] = self.divided(4 * trained.parameters, 1) if shared else 0
        if self.stage is None and self.processes > 1:
            found[BUCKETS] = trained.trained  # DistributedDataParallel's: as large as the gradients
        elif shared:
            found[BUCKETS] = 4 * min(self.bucket, trained.parameters)
        if getattr(run.stage, "enable_ema", False):
            found[AVERAGE] = policy.trained
        return found

    def scratch(self, run: Run, conditions: Conditions, trained: Weights) -> int:
        """What an optimizer that is not fused needs within its step: a number a weight, of all or of the largest."""
        name = optimizer_name(run)
        if "fused" in name or not name.startswith("adamw"):
            return 0
        count = trained.parameters if conditions.foreach else max(map(_size, trained.matrices), default=0)
        return 4 * self.divided(count, 1)

    def weights(self, held: Weights) -> int:
        """Bytes of a role's weights that a process holds between passes, of a model that trains."""
        return self.divided(held.bytes, 3)


def optimizer_name(run: Run) -> str:
    """The optimizer of a run, as its flags name it."""
    name = "adafactor" if run.training.adafactor else run.training.optim
    return str(getattr(name, "value", name))


def joined(*parts: Weights) -> Weights:
    """The weights of several roles together."""
    return Weights(
        frozen=sum(part.frozen for part in parts),
        trained=sum(part.trained for part in parts),
        parameters=sum(part.parameters for part in parts),
        all_parameters=sum(part.all_parameters for part in parts),
        largest=max((part.largest for part in parts), default=0),
        matrices=tuple(shape for part in parts for shape in part.matrices),
    )
