"""The flags of PPO (`rl_training.py`, `rlhf-hw ppo`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers.hf_argparser import HfArg

from rlhf_hw.arguments.checks import at_least, check_run
from rlhf_hw.arguments.data import PPODataArguments
from rlhf_hw.arguments.hardware import HardwareArguments
from rlhf_hw.arguments.model import ModelArguments
from rlhf_hw.arguments.options import with_defaults
from rlhf_hw.arguments.parser import StageParser
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.run import Run, assemble
from rlhf_hw.arguments.training import training_flags_class
from rlhf_hw.errors import UserError

PPOPeftArguments = with_defaults(PeftArguments, {"lora_rank": 16, "lora_alpha": 32})
PPOData = with_defaults(PPODataArguments, {"dataset_name": ["Intel/orca_dpo_pairs"]})

#: rl_training.py's defaults; its learning rate stays constant
_TRAINING_DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/",
    "learning_rate": 1.41e-5,
    "lr_scheduler_type": "constant",
    "gradient_accumulation_steps": 4,
    "seed": 0,
    "logging_steps": 1,
    "do_train": True,
}

#: TrainingArguments' flags that PPO has in another unit
_COUNTED_OTHERWISE = {
    "--num_train_epochs": "PPO runs for --steps samples and learns from each --ppo_epochs times",
    "--max_steps": "PPO runs for --steps samples",
    "--save_steps": "use --save_freq, which counts PPO updates",
}


@dataclass(kw_only=True)
class PPOArguments:
    """Rewards, rollouts and PPO's own numbers. An update is: roll out `batch_size` answers, then learn from them."""

    _argument_group_name = "PPO"

    # models and rewards
    reward_model_name: str | None = HfArg(
        default=None,
        aliases=["--reward_model_name_or_path"],
        help="The reward model: directory or hub name. It may use another tokenizer. This or --reward_function is "
        "required.",
    )
    reward_function: str | None = HfArg(
        default=None,
        help="A Python function instead of a reward model, as package.module:function. It is called with the prompts "
        "and the answers (lists of texts) and returns a score for each.",
    )
    reference_model_name: str | None = HfArg(
        default=None, help="What the KL penalty measures from. Not said: the policy as it was at the start."
    )
    critic_model_name: str | None = HfArg(
        default=None,
        help="The value model to start from, such as the reward model; with --value_model separate.",
    )
    value_model: Literal["trunk", "separate"] = HfArg(
        default="trunk",
        help="trunk: a value head on the policy's own last layer. separate: a value model of its own, started from "
        "--critic_model_name or the policy.",
    )

    # how much
    steps: int = HfArg(
        default=20000,
        help="Samples (answers) to learn from, over all processes; rounded up to whole updates.",
    )
    batch_size: int = HfArg(default=32, help="Answers rolled out for one update, on each process.")
    mini_batch_size: int = HfArg(
        default=1,
        aliases=["--per_device_train_batch_size"],
        help="Answers in one forward and backward pass, on each process. An optimizer step takes mini_batch_size times "
        "--gradient_accumulation_steps of them, which must divide batch_size.",
    )
    ppo_epochs: int = HfArg(default=4, help="How often an update goes over its answers.")
    save_freq: int | None = HfArg(
        default=None,
        help="Updates between checkpoints. Not said: only the end is saved (the original saved nothing then).",
    )

    # rollout
    output_max_length: int = HfArg(
        default=128,
        aliases=["--response_length", "--max_new_tokens"],
        help="Longest answer in tokens. The original drew the limit at random on CUDA; here an answer ends at EOS or "
        "at this length on every device.",
    )
    output_min_length: int = HfArg(default=0, help="No EOS before this many tokens.")
    temperature: float = HfArg(
        default=1.0, help="Sampling temperature; log-probabilities are taken at the same."
    )
    top_k: int = HfArg(default=0, help="Sample from the k likeliest tokens; 0: from all.")
    top_p: float = HfArg(
        default=1.0, help="Sample from the likeliest tokens that hold this much probability."
    )
    batched_gen: bool = HfArg(default=False, help="No effect here: answers are always generated in batches.")

    # reward shaping
    reward_baseline: float = HfArg(default=0.0, help="Taken off every score.")
    normalize_scores: bool = HfArg(
        default=False,
        help="Scores minus mean, over standard deviation, of the chosen answers, as saved with the reward model.",
    )
    use_score_scaling: bool = HfArg(default=False, help="Divide scores by their running standard deviation.")
    use_score_norm: bool = HfArg(
        default=False, help="With --use_score_scaling: take off their running mean as well."
    )
    score_clip: float | None = HfArg(
        default=None, help="Clip scores to plus and minus this, after the above."
    )
    missing_eos_penalty: float | None = HfArg(
        default=None, help="Taken off the score of an answer that did not end by itself."
    )
    whiten_rewards: bool = HfArg(default=False, help="Scale the rewards of a batch to variance 1, mean kept.")

    # KL
    init_kl_coef: float = HfArg(default=0.2, help="Weight of the KL penalty in the reward, at the start.")
    adap_kl_ctrl: bool = HfArg(
        default=True, help="Adapt the weight so that KL comes to --kl_target; false keeps it as it is."
    )
    kl_target: float = HfArg(default=6.0, help="KL an answer (nats) that the adaptive weight aims at.")
    kl_horizon: int = HfArg(default=10000, help="Samples over which the adaptive weight adapts.")
    kl_estimator: Literal["kl", "k2", "k3", "abs", "full"] = HfArg(
        default="kl",
        help="KL of a token, with d = log p - log q: kl is d, k2 is d*d/2 (also known as mse), k3 is exp(-d)-1+d, abs "
        "is |d|, full sums over the vocabulary.",
    )
    early_stopping: bool = HfArg(
        default=False,
        help="Skip the remaining epochs of an update once the policy has moved 1.5 times --target_kl from the "
        "one that rolled out.",
    )
    target_kl: float = HfArg(
        default=0.1, help="Mean KL a token between old and new policy, for --early_stopping."
    )

    # PPO
    gamma: float = HfArg(default=1.0, help="Discount of later rewards.")
    lam: float = HfArg(default=0.95, help="Lambda of generalized advantage estimation.")
    clip_range: float = HfArg(default=0.2, aliases=["--cliprange"], help="Clipping of the policy's ratio.")
    clip_range_value: float = HfArg(
        default=0.2, aliases=["--cliprange_value"], help="Clipping of the change in value."
    )
    vf_coef: float = HfArg(default=0.1, help="Weight of the value loss.")
    whiten_advantages: bool = HfArg(
        default=True, help="Scale the advantages of a batch to mean 0 and variance 1, padding left out."
    )
    ratio_threshold: float = HfArg(
        default=10.0, help="Skip a minibatch whose mean ratio of new to old probability is above this."
    )


@dataclass(frozen=True, kw_only=True)
class PPORun(Run):
    """The settings of a PPO run."""

    data: PPODataArguments
    stage: PPOArguments


def ppo_parser() -> StageParser:
    """The parser of this stage."""
    replaced = ["per_device_train_batch_size", *(flag[2:] for flag in _COUNTED_OTHERWISE)]
    return StageParser(
        "ppo",
        [
            ModelArguments,
            PPOArguments,
            PPOPeftArguments,
            PPOData,
            HardwareArguments,
            training_flags_class(_TRAINING_DEFAULTS, aliases={"report_to": ["--log_with"]}, without=replaced),
        ],
        description="PPO: let a policy write answers, score them, and make good ones likelier.",
        example="rlhf-hw ppo --model_name runs/sft --reward_model_name runs/reward --output_dir runs/ppo",
        elsewhere=_COUNTED_OTHERWISE,
    )


def parse_ppo(argv: Sequence[str] | None = None) -> PPORun:
    """The settings on the command line. Bad input ends the process: one line, exit status 2."""
    parser = ppo_parser()
    parsed = parser.parse(argv)
    return parser.checked(assemble(PPORun, parsed, PPODataArguments, PPOArguments), check_ppo)


def check_ppo(run: PPORun) -> None:
    """Contradictions in the settings of this stage.

    Raises:
        UserError: names the flag, what was found, what to do.
    """
    check_run(run)
    _check_reward(run.stage)
    _check_batches(run.stage, run.training.gradient_accumulation_steps)
    _check_numbers(run)
    if run.stage.critic_model_name is not None and run.stage.value_model == "trunk":
        raise UserError(
            "--critic_model_name: is a model of its own; give --value_model separate, or leave it out"
        )


def _check_reward(ppo: PPOArguments) -> None:
    if (ppo.reward_model_name is None) == (ppo.reward_function is None):
        found = "neither was" if ppo.reward_model_name is None else "both were"
        raise UserError(f"--reward_model_name and --reward_function: {found} given; give exactly one")
    if ppo.reward_function is not None:
        module, _, function = ppo.reward_function.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), function]):
            raise UserError(
                f"--reward_function: got {ppo.reward_function!r}, expected package.module:function"
            )
        if ppo.normalize_scores:
            raise UserError("--normalize_scores: needs the statistics of a --reward_model_name")
    if ppo.use_score_norm and not ppo.use_score_scaling:
        raise UserError("--use_score_norm: acts with --use_score_scaling only; give that too")


def _check_batches(ppo: PPOArguments, accumulation: int) -> None:
    at_least(1, ppo, "steps", "batch_size", "mini_batch_size", "ppo_epochs", "save_freq")
    step = ppo.mini_batch_size * accumulation
    if ppo.batch_size % step:
        raise UserError(
            f"--batch_size: {ppo.batch_size} is not a multiple of --mini_batch_size {ppo.mini_batch_size} x "
            f"--gradient_accumulation_steps {accumulation} = {step}; change one of them"
        )


def _check_numbers(run: PPORun) -> None:
    ppo = run.stage
    at_least(1, run.data, "max_prompt_length", "eval_prompts")
    at_least(1, ppo, "output_max_length", "kl_horizon")
    at_least(0, ppo, "output_min_length", "top_k", "init_kl_coef", "vf_coef", "missing_eos_penalty")
    if ppo.output_min_length > ppo.output_max_length:
        raise UserError(
            f"--output_min_length: {ppo.output_min_length} is above --output_max_length {ppo.output_max_length}"
        )
    for name in (
        "temperature",
        "clip_range",
        "clip_range_value",
        "kl_target",
        "target_kl",
        "ratio_threshold",
    ):
        if getattr(ppo, name) <= 0:
            raise UserError(f"--{name}: got {getattr(ppo, name)}, expected a number above 0")
    if ppo.score_clip is not None and ppo.score_clip <= 0:
        raise UserError(f"--score_clip: got {ppo.score_clip}, expected a number above 0")
    for name in ("gamma", "lam"):
        if not 0 <= getattr(ppo, name) <= 1:
            raise UserError(f"--{name}: got {getattr(ppo, name)}, expected a number from 0 to 1")
    if not 0 < ppo.top_p <= 1:
        raise UserError(f"--top_p: got {ppo.top_p}, expected a number above 0 and at most 1")
