"""The flags of PPO (`rl_training.py`, `rlhf-hw ppo`)."""

# ruff: noqa: RUF009 - HfArg returns a dataclasses.field
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers.hf_argparser import HfArg

from rlhf_hw.arguments.data import PPODataArguments
from rlhf_hw.arguments.hardware import HardwareArguments
from rlhf_hw.arguments.model import ModelArguments
from rlhf_hw.arguments.options import with_defaults
from rlhf_hw.arguments.parser import StageParser
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.ppo_checks import check_ppo
from rlhf_hw.arguments.reward import LEADING_PADDING_HELP, leading_padding_note
from rlhf_hw.arguments.run import Run, assemble
from rlhf_hw.arguments.sharding import PPOShardingArguments
from rlhf_hw.arguments.training import training_flags_class

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

#: other names of KL estimators, and what they are called here
KL_SPELLINGS = {"k1": "kl", "mse": "k2", "squared_error": "k2", "bregman": "k3"}

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
    init_value_with_reward: bool = HfArg(
        default=False,
        help="The value model starts as a copy of the reward model; it is then a model of its own (--value_model "
        "separate).",
    )
    share_backbone: Literal["auto", "true", "false"] = HfArg(
        default="auto",
        help="With LoRA: hold one copy of the base's weights for policy, reference, reward and value model, each an "
        "adapter on it. auto: wherever they provably have the same base, adapters of plain LoRA and one tokenizer; the "
        "run says which do. true: refuse to run where one cannot. false: a copy each.",
    )
    critic_lora_rank: int | None = HfArg(
        default=None,
        help="LoRA rank of a separate value model; 0 trains it whole. Not said: adapted as the policy is (--peft).",
    )
    critic_lora_target_modules: list[str] | None = HfArg(
        default=None,
        help="Layers of the value model that get LoRA, by the end of their names. Not said: those of the policy.",
    )

    # how much
    steps: int = HfArg(
        default=20000,
        help="Samples (answers) to learn from, over all processes; rounded up to whole updates.",
    )
    total_epochs: float | None = HfArg(default=None, help="Passes over the prompts, in place of --steps.")
    batch_size: int = HfArg(
        default=32,
        help="Answers rolled out at a time, on each process; an update learns from --generation_batches times as many.",
    )
    generation_batches: int = HfArg(
        default=1,
        help="How many batches of --batch_size answers are rolled out, one after another, for an update.",
    )
    mini_batch_size: int = HfArg(
        default=1,
        aliases=["--per_device_train_batch_size"],
        help="Answers in one forward and backward pass, on each process. An optimizer step takes mini_batch_size times "
        "--gradient_accumulation_steps of them, which must divide batch_size times --generation_batches.",
    )
    ppo_epochs: int = HfArg(default=4, help="How often an update goes over its answers.")
    save_freq: int | None = HfArg(
        default=None,
        help="Updates between checkpoints. Not said: only the end is saved (the original saved nothing then).",
    )

    save_updates: list[int] | None = HfArg(
        default=None, help="Updates after which a checkpoint is saved too, beside --save_freq."
    )

    # rollout
    output_max_length: int = HfArg(
        default=128,
        aliases=["--response_length", "--max_new_tokens"],
        help="Longest answer in tokens. The original drew the limit at random on CUDA; here an answer ends at EOS or "
        "at this length on every device.",
    )
    rollout_engine: Literal["auto", "generate", "compact", "continuous"] = HfArg(
        default="auto",
        help="What draws the answers. generate: transformers' own. compact: a decode loop of ours, faster, which drops "
        "answers that have ended (CPU and CUDA). continuous: transformers' continuous batching over a paged cache (CPU "
        "and CUDA, transformers 5.23). auto: compact where the device and the model allow it.",
    )
    output_min_length: int = HfArg(default=0, help="No EOS before this many tokens.")
    temperature: float = HfArg(
        default=1.0, help="Sampling temperature; log-probabilities are taken at the same."
    )
    top_k: int = HfArg(default=0, help="Sample from the k likeliest tokens; 0: from all.")
    top_p: float = HfArg(
        default=1.0, help="Sample from the likeliest tokens that hold this much probability."
    )
    truncate_tokens: list[str] | None = HfArg(
        default=None,
        help="An answer is cut after the first of these tokens, as after EOS; one without any of them gets "
        "--penalty_reward_value as its score.",
    )
    truncate_after: int | None = HfArg(
        default=None,
        help="With --truncate_tokens: more tokens than this must stand before the token that ends an answer, or the "
        "answer counts as one without.",
    )
    batched_gen: bool = HfArg(default=False, help="No effect here: answers are always generated in batches.")

    # reward shaping
    reward_baseline: float = HfArg(default=0.0, help="Taken off every score.")
    normalize_scores: bool = HfArg(
        default=False,
        help="Scores minus mean, over standard deviation, of the chosen answers, as saved with the reward model or as "
        "--reward_mean and --reward_std have them.",
    )
    reward_mean: float | None = HfArg(
        default=None, help="With --normalize_scores: this mean, not the one saved with the reward model."
    )
    reward_std: float | None = HfArg(
        default=None, help="With --normalize_scores: this standard deviation, not the saved one."
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
    penalty_reward_value: float = HfArg(
        default=-1.0,
        help="Score, whatever else shapes scores, of an answer without any of --truncate_tokens.",
    )
    min_answer_tokens: int = HfArg(
        default=0,
        help="Answers of fewer tokens are not learnt from. (DeepSpeed-Chat drops answers of one token: 2.)",
    )
    num_padding_at_beginning: int = HfArg(default=0, help=LEADING_PADDING_HELP)
    whiten_rewards: bool = HfArg(default=False, help="Scale the rewards of a batch to variance 1, mean kept.")

    # KL
    init_kl_coef: float = HfArg(default=0.2, help="Weight of the KL penalty in the reward, at the start.")
    adap_kl_ctrl: bool = HfArg(
        default=True, help="Adapt the weight so that KL comes to --kl_target; false keeps it as it is."
    )
    kl_target: float = HfArg(default=6.0, help="KL an answer (nats) that the adaptive weight aims at.")
    kl_horizon: int = HfArg(default=10000, help="Samples over which the adaptive weight adapts.")
    k_beta: float | None = HfArg(
        default=None,
        help="With --adap_kl_ctrl: the weight changes by this times the relative error in every update (AlpacaFarm's "
        "rule: 0.1), not by samples over --kl_horizon.",
    )
    kl_estimator: Literal[
        "kl",
        "k1",
        "clamped_kl",
        "k2",
        "mse",
        "squared_error",
        "k3",
        "bregman",
        "jensen_shannon",
        "abs",
        "full",
    ] = HfArg(
        default="kl",
        help="KL of a token, with d = log p - log q: kl (or k1) is d, clamped_kl is max(d, 0), k2 (or mse, squared_error) "
        "is d*d/2, k3 (or bregman) is exp(-d)-1+d, jensen_shannon compares both with their mean, abs is |d|, full sums "
        "over the vocabulary.",
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
    critic_learning_rate: float | None = HfArg(
        default=None, help="Learning rate of the value head or value model. Not said: --learning_rate."
    )
    critic_weight_decay: float | None = HfArg(
        default=None, help="Weight decay of the value head or value model. Not said: --weight_decay."
    )
    whiten_advantages: bool = HfArg(
        default=True, help="Scale the advantages of a batch to mean 0 and variance 1, padding left out."
    )
    ratio_threshold: float = HfArg(
        default=10.0, help="Skip a minibatch whose mean ratio of new to old probability is above this."
    )
    align_overflow: bool = HfArg(
        default=False,
        help="No effect here: policy and value function share one optimizer, and a step with a gradient that is not "
        "finite is always left out for both.",
    )

    # beside PPO
    unsupervised_dataset_name: str | None = HfArg(
        default=None,
        help="Text (hub name, directory or file) to go on modelling beside PPO, in blocks of 512 tokens, against "
        "forgetting (PTX).",
    )
    unsupervised_dataset_config_name: str | None = HfArg(
        default=None, help="Configuration of --unsupervised_dataset_name."
    )
    unsup_coef: float = HfArg(default=27.8, help="Weight of that loss beside PPO's.")
    enable_ema: bool = HfArg(
        default=False, help="Keep an exponential average of the policy's weights too, saved in actor_ema/."
    )
    ema_decay: float = HfArg(default=0.992, help="How much of that average stays in each optimizer step.")

    def __post_init__(self) -> None:
        self.kl_estimator = KL_SPELLINGS.get(self.kl_estimator, self.kl_estimator)  # type: ignore[assignment]

    @property
    def separate_critic(self) -> bool:
        """Whether the value function is a model of its own."""
        return self.value_model == "separate" or self.init_value_with_reward

    @property
    def answers_per_update(self) -> int:
        """Answers that one process learns from in one update."""
        return self.batch_size * self.generation_batches


@dataclass(frozen=True, kw_only=True)
class PPORun(Run):
    """The settings of a PPO run."""

    data: PPODataArguments
    stage: PPOArguments
    sharding: PPOShardingArguments


def critic_adapter(run: Run) -> PeftArguments:
    """What of a separate value model is trained: as of the policy, but for the flags of its own."""
    ppo, peft = run.stage, run.peft
    if ppo.critic_lora_rank == 0:
        return replace(peft, full_finetune=True)
    if ppo.critic_lora_rank is not None:
        peft = replace(peft, full_finetune=False, peft="lora", lora_rank=ppo.critic_lora_rank)
    if ppo.critic_lora_target_modules is not None:
        peft = replace(peft, lora_target_modules=ppo.critic_lora_target_modules, lora_all_linear=False)
    return peft


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
            PPOShardingArguments,
            training_flags_class(_TRAINING_DEFAULTS, aliases={"report_to": ["--log_with"]}, without=replaced),
        ],
        description="PPO: let a policy write answers, score them, and make good ones likelier.",
        example="rlhf-hw ppo --model_name runs/sft --reward_model_name runs/reward --output_dir runs/ppo",
        elsewhere=_COUNTED_OTHERWISE,
    )


def parse_ppo(argv: Sequence[str] | None = None) -> PPORun:
    """The settings on the command line. Bad input ends the process: one line, exit status 2."""
    return read_ppo(ppo_parser(), argv)


def read_ppo(parser: StageParser, argv: Sequence[str] | None) -> PPORun:
    """The settings in `argv`, checked; what is wrong with them goes to `parser.error`."""
    parsed = parser.parse(argv)
    ppo = parsed[PPOArguments]
    if "steps" in parsed.given and "total_epochs" not in parsed.given:
        ppo.total_epochs = None  # only a default: what was asked for beats it
    notes = notes_on(ppo, parsed.given)
    return parser.checked(assemble(PPORun, parsed, PPODataArguments, PPOArguments, notes), check_ppo)


def notes_on(ppo: PPOArguments, given: frozenset[str]) -> list[str]:
    """Lines on flags that do not act as given."""
    notes = leading_padding_note(ppo.num_padding_at_beginning)
    if "steps" in given and ppo.total_epochs is not None:
        notes.append("--steps: not used, since --total_epochs says how long to train")
    if ppo.align_overflow:
        notes.append(
            "--align_overflow: always so here: a step with a gradient that is not finite is left out for policy and value"
        )
    if "k_beta" in given and ppo.k_beta is not None and not ppo.adap_kl_ctrl:
        notes.append("--k_beta: without effect, since --adap_kl_ctrl is false")
    if ppo.init_value_with_reward and ppo.value_model == "trunk":
        notes.append(
            "--init_value_with_reward: the value function is a model of its own (--value_model separate)"
        )
    for name in ("group_by_length", "train_sampling_strategy"):
        if name in given:
            notes.append(f"--{name}: no effect in PPO, whose batches are the answers of an update")
    return notes
