"""Runs one stage's command on an emulated Gaudi in lazy mode, and counts the graphs a Gaudi would have compiled.

    python benchmarks/counted_run.py RESULT.json --warm-steps N [--dynamic] STAGE FLAGS…

STAGE is sft, reward or ppo, FLAGS are its own. Writes to RESULT.json how many distinct graphs ran up to the end of N
optimizer steps, which ones were new afterwards and what made them so, and the share of padding in the batches that were
trained on. `--dynamic`: pad to the longest row of each batch, as on a GPU.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_hw.hpu_environment import set_lazy_mode

MIXINS = {"sft": "SFTMixin", "reward": "RewardMixin", "ppo": "PPOMixin"}


def counting(stage: type, count: Any, warm_steps: int, found: dict[str, Any]) -> type:
    """`stage` (a mixin), which writes into `found` what `count` found while it trained."""
    from habana_torch_plugin_emulator.accounting import cause
    from transformers import TrainerCallback

    class Warm(TrainerCallback):
        """Remembers which graphs there were once `warm_steps` steps were taken and logged."""

        def __init__(self) -> None:
            self.mark: Any = None

        def on_step_begin(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
            if self.mark is None and state.global_step >= warm_steps:
                self.mark = count.mark()

    class Counting(stage):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.counted = Warm()
            self.add_callback(self.counted)
            self.masks: list[Any] = []

        def get_batch_samples(self, *args: Any) -> Any:
            batches, items = super().get_batch_samples(*args)
            self.masks += [batch["attention_mask"] for batch in batches]
            return batches, items

        def train(self, *args: Any, **kwargs: Any) -> Any:
            result = super().train(*args, **kwargs)
            late = count.since(self.counted.mark)
            real = sum(int(mask.sum()) for mask in self.masks)
            found.update(
                steps=self.state.global_step,
                warm_steps=warm_steps,
                warm_graphs=len(self.counted.mark),
                new_graphs=len(late),
                causes=[cause(graph) for graph in late],
                widths=sorted({mask.shape[1] for mask in self.masks}),
                padding=1 - real / sum(mask.numel() for mask in self.masks),
                evaluations=sum("eval_runtime" in row for row in self.state.log_history),
            )
            return result

    Counting.__name__ = stage.__name__
    return Counting


def dynamic_backend(resolve: Any) -> Any:
    """`resolve`, whose Gaudi pads as a GPU does."""
    from backends.base import GenerationOptions
    from backends.hpu import HPUBackend
    from backends.shapes import DynamicShapes, RolloutShapes, ShapePolicy

    class DynamicHPU(HPUBackend):
        def shape_policy(self, lengths: Sequence[int] = ()) -> ShapePolicy:
            return DynamicShapes()

        def rollout_shapes(self, prompt_lengths: Sequence[int], max_new_tokens: int) -> RolloutShapes:
            return RolloutShapes()

        def generation_options(self, model: Any = None) -> GenerationOptions:
            options = super().generation_options(model)
            return GenerationOptions(
                config=dict.fromkeys(options.config, False),
                arguments={**options.arguments, **({"ignore_eos": False} if options.arguments else {})},
            )

    def resolved(name: str, settings: Any) -> Any:
        backend = resolve(name, settings)
        return DynamicHPU(settings) if isinstance(backend, HPUBackend) else backend

    return resolved


def main(argv: Sequence[str]) -> int:
    """The command, counted."""
    result, *words = argv
    dynamic = "--dynamic" in words
    words = [word for word in words if word != "--dynamic"]
    place = words.index("--warm-steps")
    warm_steps = int(words[place + 1])
    del words[place : place + 2]
    stage, *flags = words
    set_lazy_mode([*flags, "--device", "hpu"], os.environ)

    from rlhf_hw.cli import ppo, reward, session, sft

    module, mixin = {"sft": sft, "reward": reward, "ppo": ppo}[stage], MIXINS[stage]
    from habana_torch_plugin_emulator.accounting import count_graphs

    found: dict[str, Any] = {"stage": stage, "dynamic": dynamic}
    if dynamic:
        vars(session)["resolve"] = dynamic_backend(session.resolve)
    with (
        count_graphs() as count
    ):  # the evaluation before training counts too: what it compiles is not new later
        setattr(module, mixin, counting(getattr(module, mixin), count, warm_steps, found))
        status = module.main([*flags, "--device", "hpu"])
    if status == 0:
        Path(result).write_text(json.dumps(found, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
