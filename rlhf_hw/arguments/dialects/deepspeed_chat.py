"""DeepSpeed-Chat's main.py of steps 1, 2 and 3, in their older and newer spellings (simple-rlhf has both)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rlhf_hw.arguments.dialects.dialect import Dialect, Flag, becomes, idle, own, same
from rlhf_hw.arguments.settling import Said, Settled

#: the same in all three scripts. Adam's betas and the clipping of gradients are written into them.
_EVERY_STEP_DEFAULTS: dict[str, Any] = {
    "dataset_name": ["Dahoas/rm-static"],
    "data_split": "2,4,4",
    "dataset_seed": 1234,
    "output_dir": "output",
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "seed": 1234,
    "peft": "none",
    "lora_alpha": 1,
    "lora_dropout": 0.0,
    "lora_all_linear": True,
}
_STEPS_1_AND_2_DEFAULTS: dict[str, Any] = {
    **_EVERY_STEP_DEFAULTS,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "num_train_epochs": 1,
    "warmup_steps": 0.0,
    "validation_split_percentage": 10,
    "do_train": True,
    "do_eval": True,
    "eval_strategy": "epoch",
    "save_strategy": "no",
}

#: command → setting → value
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {
        **_STEPS_1_AND_2_DEFAULTS,
        "learning_rate": 1e-3,
        "max_seq_length": 512,
        "train_on_inputs": True,
    },
    "reward": {
        **_STEPS_1_AND_2_DEFAULTS,
        "learning_rate": 5e-5,
        "max_length": 512,
        "rm_loss": "tokenwise",
    },
    "ppo": {
        **_EVERY_STEP_DEFAULTS,
        "learning_rate": 9.65e-6,
        "critic_learning_rate": 5e-6,
        "critic_weight_decay": 0.0,
        "critic_lora_rank": 0,
        "warmup_steps": 100.0,
        "total_epochs": 1.0,
        "batch_size": 16,
        "mini_batch_size": 16,
        "generation_batches": 1,
        "ppo_epochs": 1,
        "max_prompt_length": 256,
        "output_max_length": 256,
        "min_answer_tokens": 2,
        "value_model": "separate",
        "init_kl_coef": 0.1,
        "adap_kl_ctrl": False,
        "kl_estimator": "kl",
        "score_clip": 5.0,
        "gamma": 1.0,
        "lam": 0.95,
        "clip_range": 0.2,
        "clip_range_value": 0.2,
        "whiten_rewards": False,
        "whiten_advantages": False,
        "unsup_coef": 27.8,
        "ema_decay": 0.992,
    },
}

_TENSORBOARD = "`--report_to tensorboard`, into `--tensorboard_path`"
_ONE_LORA = (
    "with LoRA, its matrices alone train here (and a reward or value head), whether it is given or not"
)
_HYBRID = "a rollout uses the training weights themselves, there is no second engine"

_EVERY_STEP: dict[str, Flag] = {
    "data_path": same("dataset_name"),
    "data_output_path": same("dataset_cache_directory"),
    "num_warmup_steps": same("warmup_steps"),
    "only_optimize_lora": idle("switch", _ONE_LORA),
    "dtype": becomes("text", "`--fp16` or `--bf16`; not given: what the hardware does best", "fp16", "bf16"),
    "deepspeed_config": becomes("text", "`--deepspeed FILE`"),
    "compute_fp32_loss": idle("switch", "always so: losses are computed in float32"),
    "enable_tensorboard": becomes("switch", _TENSORBOARD),
    "tensorboard_path": becomes("text", "`--logging_dir`, with `--enable_tensorboard`"),
    "add_eot_token": idle("switch", "an answer ends with the tokenizer's own end of sequence"),
    "eot_token": idle("text", "an answer ends with the tokenizer's own end of sequence"),
    **own(
        *("data_split", "lr_scheduler_type", "gradient_accumulation_steps", "output_dir", "seed"),
        *("local_rank", "deepspeed", "offload"),
    ),
}
_STEPS_1_AND_2: dict[str, Flag] = {
    **_EVERY_STEP,
    "disable_dropout": becomes("switch", "`--dropout 0`"),
    "lora_dim": becomes(
        "int", "`--peft lora --lora_rank N`, scaled by 1/N (`--lora_alpha 1`); 0: `--peft none`"
    ),
    "lora_module_name": becomes("text", "`--lora_target_modules`: layers whose name contains the text"),
    "lora_learning_rate": becomes("number", "`--learning_rate` where LoRA trains, else nothing"),
    **own(
        *("model_name_or_path", "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate"),
        *("weight_decay", "num_train_epochs", "gradient_checkpointing", "dropout", "zero_stage"),
    ),
}
_NO_DROPOUT = "PPO never has dropout here: the ratio of new to old probability would not begin at 1"
_CHECKPOINTING = "`--gradient_checkpointing`, of policy and value model alike"

#: command → flag → what it is
FLAGS: dict[str, dict[str, Flag]] = {
    "sft": {
        **_STEPS_1_AND_2,
        "max_seq_len": same("max_seq_length"),
        "print_loss": becomes("switch", "`--logging_steps 1`"),
        **own("sft_only_data_path"),
    },
    "reward": {
        **_STEPS_1_AND_2,
        "max_seq_len": same("max_length"),
        "eval_interval": becomes("int", "`--eval_strategy steps --eval_steps N`; 0: after each epoch"),
        "eval_iters": becomes("int", "`--max_eval_samples`: as many batches of evaluation"),
        **own("num_padding_at_beginning"),
    },
    "ppo": {
        **_EVERY_STEP,
        "actor_model_name_or_path": same("model_name_or_path"),
        "actor_zero_stage": same("zero_stage"),
        "critic_model_name_or_path": becomes(
            "text", "`--reward_model_name` and, where the value model starts, `--critic_model_name`"
        ),
        "per_device_generation_batch_size": same("batch_size"),
        "per_device_train_batch_size": same(
            "batch_size", "answers rolled out at a time (the older spelling)"
        ),
        "per_device_training_batch_size": same("mini_batch_size"),
        "per_device_mini_train_batch_size": same("mini_batch_size"),
        "generation_batch_numbers": same("generation_batches"),
        "max_prompt_seq_len": same("max_prompt_length"),
        "max_answer_seq_len": same("output_max_length"),
        "actor_learning_rate": same("learning_rate"),
        "actor_weight_decay": same("weight_decay"),
        "num_train_epochs": same("total_epochs"),
        "actor_gradient_checkpointing": becomes("switch", _CHECKPOINTING),
        "critic_gradient_checkpointing": becomes("switch", _CHECKPOINTING),
        "actor_dropout": idle("number", _NO_DROPOUT),
        "critic_dropout": idle("number", _NO_DROPOUT),
        "disable_actor_dropout": idle("switch", _NO_DROPOUT),
        "disable_critic_dropout": idle("switch", _NO_DROPOUT),
        "actor_lora_dim": becomes(
            "int", "`--peft lora --lora_rank N`, scaled by 1/N (`--lora_alpha 1`); 0: `--peft none`"
        ),
        "actor_lora_module_name": becomes(
            "text", "`--lora_target_modules`: layers whose name contains the text"
        ),
        "actor_lora_learning_rate": becomes("number", "`--learning_rate` where LoRA trains, else nothing"),
        "critic_lora_dim": same("critic_lora_rank"),
        "critic_lora_module_name": becomes(
            "text", "`--critic_lora_target_modules`: layers whose name contains the text"
        ),
        "critic_lora_learning_rate": becomes(
            "number", "`--critic_learning_rate` where LoRA trains, else nothing"
        ),
        "enable_hybrid_engine": idle("switch", _HYBRID),
        "unpin_actor_parameters": idle("switch", _HYBRID),
        "release_inference_cache": idle("switch", _HYBRID),
        "inference_tp_size": idle("int", _HYBRID),
        "tp_gather_partition_size": idle("int", _HYBRID),
        "enable_mixed_precision_lora": idle(
            "switch", "always so: LoRA's matrices are float32 on half-precision weights"
        ),
        "print_answers": idle("switch", "answers of every rollout stand in samples.jsonl and in the report"),
        "print_answers_interval": idle("int", "answers of every rollout stand in samples.jsonl"),
        "enable_test_mode": becomes("switch", "`--steps`, with `--test_stop_step`"),
        "test_stop_step": becomes("int", "`--steps`: so many rollouts, with `--enable_test_mode`"),
        **own(
            *("unsupervised_dataset_name", "unsupervised_dataset_config_name", "unsup_coef"),
            *("num_padding_at_beginning", "generation_batches", "ppo_epochs", "critic_learning_rate"),
            *("critic_weight_decay", "preprocessing_num_workers", "enable_ema", "align_overflow"),
            *("critic_zero_stage", "offload_reference_model", "offload_reward_model"),
        ),
    },
}


def settle(command: str, said: Said) -> Iterator[Settled]:
    """What the flags become that are not one setting."""
    held = said.held
    if "dtype" in held:
        yield Settled(("dtype",), {held["dtype"]: True})
    if "deepspeed_config" in held:
        # beside the bare switch, as DeepSpeed's users write the two, it only says more
        bare = str(said.settings["deepspeed"]).lower() in ("true", "1")
        yield Settled(("deepspeed_config",), {"deepspeed": held["deepspeed_config"]}, replaces=bare)
    if held.get("enable_tensorboard"):
        step = ("sft", "reward", "ppo").index(command) + 1
        path = held.get("tensorboard_path", f"step{step}_tensorboard")
        yield Settled(("enable_tensorboard",), {"report_to": ["tensorboard"], "logging_dir": path})
    elif "tensorboard_path" in held:
        yield Settled(("tensorboard_path",), line="without effect, since --enable_tensorboard is not given")
    if "output_dir" not in said.given:
        yield Settled(
            (),
            {"output_dir": "output"},
            line="--output_dir: not given (the original saved nothing then), so it is output",
        )
    yield from _adapter(said, "actor_" if command == "ppo" else "", "")
    if command == "ppo":
        yield from _adapter(said, "critic_", "critic_")
        yield from _models(said)
        yield from _rollouts(said)
    else:
        yield from _evaluation(said)


def _adapter(said: Said, theirs: str, ours: str) -> Iterator[Settled]:
    """LoRA of one model: its size, layers and learning rate."""
    held = said.held
    size, names, rate = f"{theirs}lora_dim", f"{theirs}lora_module_name", f"{theirs}lora_learning_rate"
    before = said.settings["lora_rank"] if said.settings["peft"] == "lora" else 0
    rank = said.settings["critic_lora_rank"] if ours else held.get(size, before)
    if not ours and size in held:
        yield Settled((size,), {"peft": "lora", "lora_rank": rank} if rank > 0 else {"peft": "none"})
        if rank > 0 and not held.get("only_optimize_lora"):
            yield Settled(
                (size,),
                line="LoRA alone trains: embeddings, norms, biases, the head and layers without LoRA stay frozen (without "
                "--only_optimize_lora the original trained them too)",
            )
    if not rank:
        for name in (names, rate):
            if name in held:
                yield Settled((name,), line=f"without effect, since --{size} is 0")
        return
    if names in held:
        layers = [f"*{part.strip()}*" for part in held[names].split(",") if part.strip()]
        yield Settled((names,), {f"{ours}lora_target_modules": layers})
    elif ours and said.settings["lora_target_modules"] is not None:
        yield Settled((), {"critic_lora_target_modules": ["*"]})
    if rate in held:
        yield Settled((rate,), {f"{ours}learning_rate": held[rate]}, replaces=True)


def _models(said: Said) -> Iterator[Settled]:
    """One directory is the reward model and the value model's start; checkpointing is of both or none."""
    held = said.held
    name = held.get("critic_model_name_or_path")
    if name is not None:
        settings = {"reward_model_name": name}
        if said.settings["value_model"] == "separate":
            settings["critic_model_name"] = name
        yield Settled(("critic_model_name_or_path",), settings)
        if said.settings["init_value_with_reward"]:  # a preset's way to say the same
            yield Settled(("critic_model_name_or_path",), {"init_value_with_reward": False}, yields=True)
    checkpointed = [
        name for name in ("actor_gradient_checkpointing", "critic_gradient_checkpointing") if held.get(name)
    ]
    if checkpointed:
        yield Settled(tuple(checkpointed), {"gradient_checkpointing": True})


def _rollouts(said: Said) -> Iterator[Settled]:
    """How many answers an update learns from, and how many updates there are.

    The original takes minibatches out of one rollout at a time, and accumulates gradients over rollouts where one holds
    too few; with nothing learnt in between that is one larger rollout.
    """
    settings = said.settings
    answers, minibatch = settings["batch_size"], min(settings["mini_batch_size"], settings["batch_size"])
    if minibatch != settings["mini_batch_size"]:
        yield Settled(
            (),
            {"mini_batch_size": minibatch},
            line=f"a rollout holds {answers} answers: --mini_batch_size is {minibatch}, not "
            f"{settings['mini_batch_size']}",
            replaces=True,
        )
    step = minibatch * settings["gradient_accumulation_steps"]
    batches = settings["generation_batches"]
    if min(answers, step, batches) > 0 and answers * batches % step:
        batches = math.lcm(answers * batches, step) // answers
        yield Settled(
            (),
            {"generation_batches": batches},
            line=f"an optimizer step takes {step} answers: {batches} rollouts of {answers} are learnt from at once "
            "(--generation_batches)",
            replaces=True,
        )
    if said.held.get("enable_test_mode"):
        rollouts = max(1, said.held.get("test_stop_step", 0))
        flags = tuple(name for name in ("enable_test_mode", "test_stop_step") if name in said.held)
        yield Settled(
            flags,
            {"steps": rollouts * answers * said.processes, "total_epochs": None},
            line=f"{rollouts} rollouts of {answers} answers on each process",
            replaces=True,
        )


def _evaluation(said: Said) -> Iterator[Settled]:
    """Steps 1 and 2."""
    held = said.held
    if held.get("disable_dropout"):
        yield Settled(("disable_dropout",), {"dropout": 0.0})
    if held.get("print_loss"):
        yield Settled(("print_loss",), {"logging_steps": 1.0})
    if held.get("eval_interval"):
        yield Settled(("eval_interval",), {"eval_strategy": "steps", "eval_steps": held["eval_interval"]})
    if "eval_iters" in held:
        rows = held["eval_iters"] * said.settings["per_device_eval_batch_size"] * said.processes
        yield Settled(("eval_iters",), {"max_eval_samples": rows})


TELLS = frozenset({"data_path", "num_padding_at_beginning"})

DECISIVE = frozenset({"actor_model_name_or_path"})

DIALECT = Dialect("deepspeed-chat", "DeepSpeed-Chat", FLAGS, DEFAULTS, settle, TELLS, DECISIVE)
