"""AlpacaFarm's rlhf_ppo.py, with the flags of its LoRA version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_hw.arguments.dialects.dialect import Dialect, Flag, becomes, idle, own, same
from rlhf_hw.arguments.settling import Said, Settled
from rlhf_hw.errors import UserError

#: command → setting → value
DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {
        "dataset_name": ["tatsu-lab/alpaca_farm"],
        "dataset_config_name": "alpaca_instructions",
        "train_splits": ["unlabeled"],
        "eval_splits": ["val"],
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "adam_epsilon": 1e-5,
        "seed": 42,
        "save_freq": 500,
        "peft": "none",
        "lora_rank": 8,
        "lora_alpha": 64,
        "lora_dropout": 0.1,
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "total_epochs": 10.0,
        "ppo_epochs": 2,
        "max_prompt_length": 192,
        "output_max_length": 300,
        "temperature": 1.0,
        "init_value_with_reward": True,
        "init_kl_coef": 0.2,
        "adap_kl_ctrl": False,
        "kl_target": 6.0,
        "k_beta": 0.1,
        "gamma": 1.0,
        "lam": 0.95,
        "clip_range": 0.2,
        "clip_range_value": 0.2,
        "vf_coef": 0.1,
        "whiten_rewards": True,
        "whiten_advantages": True,
        "penalty_reward_value": -1.0,
    },
}
#: answers over all processes of a rollout and of an optimizer step, and of each on one process at a time
_BATCHES = {
    "rollout_batch_size": 512,
    "step_batch_size": 256,
    "rollout_per_device_batch_size": 32,
    "step_per_device_batch_size": 2,
}

#: command → flag → what it is
FLAGS: dict[str, dict[str, Flag]] = {
    "ppo": {
        "dataset_path": same("dataset_name"),
        "dataset_name": same("dataset_config_name", "a configuration of the data set --dataset_path"),
        "policy_model_name_or_path": same("model_name_or_path"),
        "reward_model_name_or_path": same("reward_model_name"),
        "policy_lora_path": becomes("text", "`--model_name_or_path`, where it is a PEFT adapter"),
        "latest_checkpoint_path": same("resume_from_checkpoint"),
        "rollout_batch_size": becomes("int", "`--generation_batches`: this, over all processes, in rollouts"),
        "rollout_per_device_batch_size": becomes("int", "`--batch_size`"),
        "step_batch_size": becomes("int", "`--gradient_accumulation_steps`: this over all processes"),
        "step_per_device_batch_size": becomes("int", "`--mini_batch_size`"),
        "noptepochs": same("ppo_epochs"),
        "cliprange": same("clip_range"),
        "cliprange_value": same("clip_range_value"),
        "kl_coef": same("init_kl_coef"),
        "target_kl": same("kl_target", "what the adaptive coefficient aims at, not an early stop"),
        "adaptive_kl": same("adap_kl_ctrl"),
        "kl_term_variant": same("kl_estimator"),
        "query_len": same("max_prompt_length"),
        "response_len": same("output_max_length"),
        "save_steps": same("save_freq"),
        "save_steps_extra": becomes("text", "`--save_updates`: updates A__B after which to save too"),
        "use_lora": becomes("switch", "`--peft lora`, else `--peft none`"),
        "lora_r": same("lora_rank"),
        "flash_attn": idle(
            "switch", "the fastest attention kernel that is installed is taken anyway (--attn_implementation)"
        ),
        "eval_batches": becomes("int", "`--eval_prompts`: as many batches of evaluation"),
        "wandb_project": idle("text", "set the variable WANDB_PROJECT, with --report_to wandb"),
        "debug": idle("switch", "a failure shows its cause in any case"),
        "grid_search": idle("switch", "no search is done"),
        "kl_analysis": idle("switch", "KL and its coefficient are always logged and plotted"),
        **own(
            *("train_splits", "eval_splits", "prompt_dict_path", "run_name", "output_dir", "total_epochs"),
            *("per_device_eval_batch_size", "learning_rate", "vf_coef", "gamma", "lam"),
            *("whiten_rewards", "adam_epsilon", "temperature", "k_beta", "init_value_with_reward"),
            *("truncate_tokens", "truncate_after", "penalty_reward_value", "lora_alpha", "lora_dropout"),
            *("cache_dir", "optim", "use_fast_tokenizer", "seed"),
        ),
        "warmup_steps": Flag("warmup_steps", note="counts updates there, optimizer steps here"),
        "eval_steps": Flag("eval_steps", note="turns evaluation on (`--eval_strategy steps`)"),
    }
}


def settle(command: str, said: Said) -> Iterator[Settled]:
    """What the flags become that are not one setting."""
    held = said.held
    if "use_lora" in held:
        yield Settled(("use_lora",), {"peft": "lora" if held["use_lora"] else "none"})
    if "policy_lora_path" in held:
        path = held["policy_lora_path"]
        if not (Path(path) / "adapter_config.json").is_file():
            raise UserError(
                f"--policy_lora_path: {path} is no PEFT adapter (no adapter_config.json in it); give a directory that a "
                "training here wrote"
            )
        yield Settled(("policy_lora_path",), {"model_name_or_path": path}, replaces=True)
    if "save_steps_extra" in held:
        yield Settled(("save_steps_extra",), {"save_updates": _updates(held["save_steps_extra"])})
    if "eval_batches" in held:
        rows = held["eval_batches"] * said.settings["per_device_eval_batch_size"] * said.processes
        yield Settled(("eval_batches",), {"eval_prompts": rows})
    if "eval_steps" in said.given:
        yield Settled(("eval_steps",), {"eval_strategy": "steps", "do_eval": True}, yields=True)
    yield from _batches(said)


def _updates(text: str) -> list[int]:
    """The numbers of "20__100"."""
    if not all(part.isdecimal() for part in text.split("__")):
        raise UserError(f"--save_steps_extra: got {text!r}, expected numbers of updates as 20__100")
    return [int(part) for part in text.split("__")]


def _run_batches(said: Said) -> dict[str, int]:
    """The batches of the run whose settings are changed, in this system's terms; none without such a run."""
    if not said.onto_a_run:
        return {}
    settings, parts = said.settings, ("batch_size", "mini_batch_size")
    rollout, step = (settings[name] * said.processes for name in parts)
    return {
        "rollout_batch_size": rollout * settings["generation_batches"],
        "step_batch_size": step * settings["gradient_accumulation_steps"],
        "rollout_per_device_batch_size": settings["batch_size"],
        "step_per_device_batch_size": settings["mini_batch_size"],
    }


def _batches(said: Said) -> Iterator[Settled]:
    """Batches over all processes as batches of each; the learning rate's warm-up in optimizer steps."""
    sizes = {name: said.held.get(name, size) for name, size in (_run_batches(said) or _BATCHES).items()}
    for whole, part, parts_are, part_is in (
        ("rollout_batch_size", "rollout_per_device_batch_size", "generation_batches", "batch_size"),
        ("step_batch_size", "step_per_device_batch_size", "gradient_accumulation_steps", "mini_batch_size"),
    ):
        together = sizes[part] * said.processes
        if together < 1 or sizes[whole] < together or sizes[whole] % together:
            raise UserError(
                f"--{whole}: {sizes[whole]} is not a multiple of --{part} {sizes[part]} x {said.processes} processes; "
                "change one of them"
            )
        flags = tuple(name for name in (whole, part) if name in said.held)
        yield Settled(flags, {part_is: sizes[part], parts_are: sizes[whole] // together})
    if "warmup_steps" in said.given:
        steps = said.settings["ppo_epochs"] * sizes["rollout_batch_size"] / sizes["step_batch_size"]
        updates = said.settings["warmup_steps"]
        yield Settled(
            ("warmup_steps",),
            {"warmup_steps": updates * steps},
            line=f"{updates:g} updates of {steps:g} optimizer steps",
            replaces=True,
        )


DECISIVE = frozenset({"policy_model_name_or_path"})

DIALECT = Dialect("alpaca-farm", "AlpacaFarm's rlhf_ppo.py", FLAGS, DEFAULTS, settle, decisive=DECISIVE)
