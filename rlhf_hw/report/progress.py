"""What a user sees while a stage trains: a bar on a terminal, and one short line a log call anywhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

#: Logged name → (label, format), in the order in which they are shown. The rest is in metrics.jsonl.
SHOWN = {
    "loss": ("loss", ".4f"),
    "objective/scores": ("score", ".3f"),
    "objective/rlhf_reward": ("reward", ".3f"),
    "objective/kl": ("kl", ".3f"),
    "objective/kl_coef": ("kl coef", ".3f"),
    "objective/entropy": ("entropy", ".2f"),
    "policy/clipfrac": ("clipped", ".2f"),
    "value/explained_variance": ("value ev", ".2f"),
    "response/length_mean": ("length", ".0f"),
    "response/eos_rate": ("ended", ".0%"),
    "accuracy": ("accuracy", ".3f"),
    "margin": ("margin", ".3f"),
    "eval_loss": ("eval loss", ".4f"),
    "eval_perplexity": ("perplexity", ".2f"),
    "eval_accuracy": ("eval accuracy", ".3f"),
    "eval_margin": ("eval margin", ".3f"),
    "eval_scores": ("eval score", ".3f"),
    "eval_kl": ("eval kl", ".3f"),
    "eval_length": ("eval length", ".0f"),
    "grad_norm": ("grad norm", ".2f"),
    "learning_rate": ("lr", ".2e"),
    "speed/tokens_per_second": ("tokens/s", ".0f"),
}
#: Not worth a line when PPO shows them: its loss has no scale of its own.
_PPO_HIDES = ("loss", "grad_norm", "learning_rate")


def summary(logs: dict[str, Any]) -> str:
    """One line of the metrics worth watching; empty where there are none."""
    hidden = _PPO_HIDES if "objective/kl" in logs else ()
    parts = [
        f"{label} {logs[name]:{form}}"
        for name, (label, form) in SHOWN.items()
        if isinstance(logs.get(name), (int, float)) and name not in hidden
    ]
    return "  ".join(parts)


class StageProgress(TrainerCallback):
    """Takes the place of transformers' progress bar and of its printed dictionaries."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            shown = sys.stderr.isatty() and not args.disable_tqdm
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                disable=not shown,
                dynamic_ncols=True,
                unit="step",
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs and (line := summary(logs)):
            tqdm.write(f"step {state.global_step}/{state.max_steps}  {line}", file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
