"""What is held from step to step beside the weights, and what processes share of it: arithmetic, nothing is run."""

from __future__ import annotations

from collections import Counter

from rlhf_hw.arguments.run import Run
from rlhf_hw.errors import UserError
from rlhf_hw.estimate.live_bytes import BUCKETS, GRADIENTS, Bytes
from rlhf_hw.estimate.roles import Conditions, Weights
from rlhf_hw.estimate.sharing import Sharing

OPTIMIZER, MASTER, AVERAGE = "optimizer state", "master copies", "averaged weights"
SCRATCH = "optimizer scratch"


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


def held(sharing: Sharing, run: Run, conditions: Conditions, trained: Weights, policy: Weights) -> Bytes:
    """What a process holds from step to step beside weights. `trained`: of all roles that train together."""
    found: Bytes = Counter()
    count = trained.parameters
    master = sharing.stage is not None and sharing.stage >= 1  # DeepSpeed steps on a copy of its own
    if not (sharing.stage and sharing.offload):
        found[OPTIMIZER] = sharing.divided(optimizer_bytes(optimizer_name(run), trained.matrices), 1)
        found[MASTER] = sharing.divided(4 * count, 1) if master else 0
    if sharing.averages:
        found[BUCKETS] = trained.trained  # DistributedDataParallel's: as large as the gradients
    elif sharing.stage == 3:
        found[BUCKETS] = sharing.bucket(conditions.reserves, count)
        found[GRADIENTS] = sharing.divided(trained.trained, 1)  # made once, and kept
    if getattr(run.stage, "enable_ema", False):
        found[AVERAGE] = policy.trained
    return found


def within_optimizer(sharing: Sharing, run: Run, conditions: Conditions, trained: Weights) -> Bytes:
    """What an optimizer's step holds: gradients, and what it needs for itself."""
    found: Bytes = Counter({GRADIENTS: sharing.divided(trained.trained, 1)})
    if sharing.stage in (1, 2):
        found[GRADIENTS] *= 2  # DeepSpeed puts them end to end first
    found[SCRATCH] = _scratch(sharing, run, conditions, trained)
    return found


def _scratch(sharing: Sharing, run: Run, conditions: Conditions, trained: Weights) -> int:
    """What an optimizer that is not fused needs within its step: a number a weight, of all or of the largest."""
    name = optimizer_name(run)
    if "fused" in name or not name.startswith("adamw"):
        return 0
    # DeepSpeed steps on one flat weight
    flat = conditions.foreach or bool(sharing.stage)
    count = trained.parameters if flat else max(map(_size, trained.matrices), default=0)
    return 4 * sharing.divided(count, 1)


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
