"""What processes share of a stage's memory, by DeepSpeed's ZeRO, by FSDP or not at all: arithmetic, nothing is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rlhf_hw.arguments.fsdp import FSDPPlan
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sharding import deepspeed_is_bare, fsdp_plan, is_off, read_config, zero_stage
from rlhf_hw.errors import UserError
from rlhf_hw.estimate.live_bytes import BUCKETS, GRADIENTS, Bytes
from rlhf_hw.trainers.fsdp import units_of

GATHERED = "gathered weights"
#: DeepSpeed's settings where its configuration leaves them out, in elements
_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}


@dataclass(frozen=True)
class Parts:
    """Bytes of what FSDP gathers at once, of the models that are trained: whole, and what of it trains in fp32.

    root: what lies in no unit, whole from the forward to the backward pass. unit: the largest unit.
    """

    root: int = 0
    root_trained: int = 0
    unit: int = 0
    unit_trained: int = 0

    @classmethod
    def of(cls, model: nn.Module, plan: FSDPPlan) -> Parts:
        """The parts of a model (it may be one on the meta device) as FSDP shares it out by `plan`."""
        units = units_of(model, plan)
        taken: set[int] = set()
        sizes = []
        for unit in units:  # inner ones come first
            own = {id(weight): weight for weight in unit.parameters() if id(weight) not in taken}
            taken |= own.keys()
            sizes.append(_sizes(own.values()))
        root = _sizes({id(w): w for w in model.parameters() if id(w) not in taken}.values())
        return cls(*root, *max(sizes, default=(0, 0)))


def _sizes(weights: Any) -> tuple[int, int]:
    """(bytes of weights, bytes of those that train)."""
    held = list(weights)
    return (
        sum(weight.numel() * weight.element_size() for weight in held),
        sum(weight.numel() * weight.element_size() for weight in held if weight.requires_grad),
    )


def _elements(zero: Mapping[str, Any], name: str) -> int:
    """A size in DeepSpeed's section `zero_optimization`."""
    said = zero.get(name, "auto")
    if said == "auto":
        return _DEFAULTS[name]
    try:
        return int(said)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"--deepspeed: zero_optimization.{name} is {said!r}, expected a number of elements"
        ) from None


@dataclass(frozen=True)
class Sharing:
    """How many processes there are, and what they share.

    stage: DeepSpeed's, None without it. plan: FSDP's, None without it. settings: DeepSpeed's sizes, in elements.
    """

    processes: int
    stage: int | None = None
    plan: FSDPPlan | None = None
    settings: Mapping[str, int] | None = None
    offload: bool = False  #: optimizer's state in the host's memory, at stage 3 the weights too

    @classmethod
    def of(cls, run: Run, processes: int) -> Sharing:
        """As the flags of `run` have it.

        Raises:
            UserError: a setting of DeepSpeed or FSDP that there is not.
        """
        plan, stage, said = fsdp_plan(run), zero_stage(run), run.training.deepspeed
        if is_off(said):
            return cls(processes, plan=plan)
        zero = {} if deepspeed_is_bare(said) else read_config(said).get("zero_optimization", {})
        settings = {name: _elements(zero, name) for name in _DEFAULTS}
        offload = run.sharding.offload or "offload_optimizer" in zero
        return cls(processes, stage, settings=settings, offload=offload)

    @property
    def keeps_casts(self) -> bool:
        """Whether autocast may keep a weight that it has cast for a second use in a pass that trains."""
        return self.plan is None

    def shares(self, since: int) -> bool:
        """Whether that is shared which DeepSpeed shares from stage `since` on; FSDP shares it all."""
        return self.plan is not None or (self.stage is not None and self.stage >= since)

    def divided(self, size: int, since: int) -> int:
        """`size`, or a process's part of it."""
        return -(-size // self.processes) if self.shares(since) else size

    @property
    def averages(self) -> bool:
        """Whether DistributedDataParallel averages the gradients, of which every process holds all."""
        return self.processes > 1 and self.plan is None and not self.stage

    def bucket(self, reserves: bool, parameters: int) -> int:
        """Bytes of the buffer, in fp32, in which DeepSpeed collects gradients of so many weights.

        reserves: whether of what is asked for that counts too which is never written.
        """
        assert self.settings is not None
        asked = self.settings["reduce_bucket_size"]
        return 4 * (asked if reserves else min(asked, parameters))

    def within_step(self, there: Bytes, parts: Parts, before: int, reserves: bool) -> Bytes:
        """What lives at a moment of a pass that trains, of which the gradients may be shared.

        DeepSpeed writes them into a buffer, and at the end keeps its share. FSDP: a layer's are whole until the backward
        pass has left it, as is then the copy that is sent; those of the root until the end. before: bytes of gradients of
        earlier micro-batches, where they are shared.
        """
        made = there[GRADIENTS]
        found = Counter({**there, GRADIENTS: self.divided(max(made, before), 1)})
        if self.plan is not None:
            found[GRADIENTS] += min(made, parts.root_trained + 2 * parts.unit_trained)
        if self.stage == 3:
            del found[GRADIENTS]  # counted as held
        if self.stage in (1, 2):
            found[BUCKETS] = self.bucket(reserves, made // 4)
        return found

    def gathered(self, parts: Parts, weights: int, parameters: int) -> int:
        """Bytes of weights that a process holds whole within a pass that trains, beside its own share.

        FSDP gathers into one buffer and then cuts it up: the layer that runs, and the next one's buffer; with
        `shard_grad_op` all that the forward pass has been through. DeepSpeed keeps what is used again soon.

        weights: bytes of all that is shared, parameters: their number.
        """
        if self.plan is not None:
            if self.plan.units == "nothing" or not self.plan.reshard_after_forward:
                return weights + max(parts.unit, parts.root if self.plan.units == "nothing" else 0)
            return parts.root + 2 * parts.unit
        if not self.shares(3):
            return 0
        assert self.settings is not None
        # a weight is used again after twice what comes behind it: half the distance is kept
        live = self.settings["stage3_max_reuse_distance"] // 2 + self.settings["stage3_prefetch_bucket_size"]
        return int(weights * min(1.0, live / max(parameters, 1)))
