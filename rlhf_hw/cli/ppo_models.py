"""The models of `rlhf-hw ppo`: policy, value function, reference and reward model, as its flags name them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from backends.shapes import RolloutShapes
from rlhf_hw.arguments.ppo import PPORun, critic_adapter
from rlhf_hw.cli.session import Session
from rlhf_hw.errors import UserError
from rlhf_hw.models.adapter_files import AdapterFiles
from rlhf_hw.models.adapters import for_layers_of
from rlhf_hw.models.base_sharing import Sharing, has_tokenizer
from rlhf_hw.models.load import (
    adapter_base,
    check_reward_model,
    fresh_score,
    load_policy,
    load_reward_model,
    load_sequence_classifier,
)
from rlhf_hw.models.reward_model import RewardModel, RewardStatistics
from rlhf_hw.models.roles import ActorCritic
from rlhf_hw.models.shared_base import POLICY, VALUE, AdapterRole, SharedBase, on_layers
from rlhf_hw.models.weights import load_weights_into
from rlhf_hw.models.wrapping import remove_dropout
from rlhf_hw.rollout.sampling import mix_seed
from rlhf_hw.trainers.base import replay_passes
from rlhf_hw.trainers.scoring import RewardModelScorer, Scorer, same_tokenizer


def actor_critic(session: Session, run: PPORun, tokenizer: Any, sharing: Sharing) -> ActorCritic:
    """Policy, value function and reference, as separate or as shared as `sharing` says."""
    policy, base = load_trained_policy(session, run, tokenizer, sharing)
    if sharing.continues:
        session.say(f"policy: goes on from the adapter {sharing.policy.adapters[-1]}")
    critic: RewardModel | None = None
    if "value" in sharing.shared:
        critic = value_on_base(session, run, sharing, of(base))
    elif run.stage.separate_critic:
        critic = separate_critic(session, run, tokenizer, sharing)
    reference, offloaded = None, run.sharding.offload_reference_model
    reference_adapters: list[str] = []
    if "reference" in sharing.apart:
        copied = reference_apart(session, run, tokenizer, sharing)
        reference = frozen_on_device(session, copied, offloaded=offloaded)
    elif base is not None:
        reference_adapters = [base.add_frozen(folder) for folder in sharing.shared["reference"].adapters]
    roles = ActorCritic(policy, critic, reference, run.stage.temperature, offloaded, base, reference_adapters)
    for model in (roles, reference):
        if model is not None:
            remove_dropout(model)
    session.say("; ".join([reference_line(run, sharing), value_line(run, sharing)]))
    return roles


def reference_apart(session: Session, run: PPORun, tokenizer: Any, sharing: Sharing) -> Any:
    """A reference with weights of its own. A copy of the policy is held as the policy is, or the first KL would not be zero."""
    other = run.stage.reference_model_name
    if other is not None:
        return load_policy(other, session.load_options("--reference_model_name", trained=False))
    if run.model.quantization_bits() is None:
        options = session.load_options("--model_name", trained=True)
        return load_policy(run.model.model_name_or_path, options)
    # an adapter merged into quantized weights would round them anew
    with torch.random.fork_rng(devices=[]):
        return load_trained_policy(session, run, tokenizer, sharing)[0]


def load_trained_policy(
    session: Session, run: PPORun, tokenizer: Any, sharing: Sharing
) -> tuple[Any, SharedBase | None]:
    """The policy with what of it trains, and the base that other roles may stand on too.

    Where a role shares the base, adapters below the policy's stay adapters; else they become part of the weights.
    """
    chain = sharing.policy
    below = chain.adapters[:-1] if sharing.continues else chain.adapters
    stays = run.peft.peft == "lora" and bool(sharing.shared)
    start = chain.root if stays or not below else below[-1]
    options = session.load_options("--model_name", trained=True)
    policy = load_policy(start, session.quantized(options))
    policy.config.pad_token_id = tokenizer.pad_token_id
    files = AdapterFiles.read(chain.adapters[-1]) if sharing.continues else None
    policy = session.with_adapter(policy, "CAUSAL_LM", config=None if files is None else continued(files))
    base = SharedBase(policy) if run.peft.peft == "lora" else None
    if files is not None:
        of(base).load(POLICY, files.tensors)
    if stays and below:
        of(base).policy_is([*map(of(base).add_frozen, below), POLICY])
        policy.peft_config[POLICY].base_model_name_or_path = below[-1]
    return policy, base


def of(base: SharedBase | None) -> SharedBase:
    """A base that is there: `decide_sharing` lets roles share LoRA's only."""
    assert base is not None
    return base


def continued(files: AdapterFiles, task_type: str = "CAUSAL_LM") -> Any:
    """The configuration of an adapter that is trained further."""
    config = copy.deepcopy(files.config)
    config.inference_mode, config.task_type = False, task_type
    if task_type == "CAUSAL_LM":
        config.modules_to_save = None
    return config


def value_on_base(session: Session, run: PPORun, sharing: Sharing, base: SharedBase) -> AdapterRole:
    """The value function as an adapter of the policy's base, under a head of its own."""
    chain = sharing.shared["value"]
    last = AdapterFiles.read(chain.adapters[-1]) if chain.adapters else None
    below = chain.adapters[:-1] if sharing.value_continues else chain.adapters
    names = [base.add_frozen(folder) for folder in below]
    if sharing.value_continues:
        assert last is not None
        base.add(VALUE, on_layers(last), last.tensors, trained=True)
        exported = continued(last, "SEQ_CLS")
    else:
        config = session.adapter_config("CAUSAL_LM", critic_adapter(run))
        with fresh_value(session):
            base.add(VALUE, for_layers_of(base.model, config), trained=True)
        config.target_modules = base.model.peft_config[VALUE].target_modules  # as PEFT has settled them
        exported = continued(AdapterFiles(config, {}, None), "SEQ_CLS")
        exported.modules_to_save = ["classifier", "score"]  # as PEFT has it for classifiers
        exported.base_model_name_or_path = below[-1] if below else chain.root
    width = base.model.get_output_embeddings().weight.shape[1]
    if last is not None and last.score is not None:
        score = last.score
    elif run.stage.critic_model_name is None:
        score = torch.zeros(1, width)
    else:
        with fresh_value(session):
            score = fresh_score(1, width)
    return AdapterRole(base, [*names, VALUE], score, exported)


@contextmanager
def fresh_value(session: Session) -> Iterator[None]:
    """Random numbers that are the same whether the value function shares its base or not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(session.args.seed, 5))
        yield


def reference_line(run: PPORun, sharing: Sharing) -> str:
    """Where the reference is."""
    if "reference" in sharing.apart:
        return "reference: a model of its own"
    adapters = sharing.shared["reference"].adapters
    if run.peft.peft == "lora" and adapters != sharing.policy.adapters:
        return f"reference: the policy's base with {' and '.join(adapters) or 'no adapter'}"
    if sharing.continues:
        return "reference: the policy's base with the adapter it began from"
    return "reference: the policy without its adapter"


def value_line(run: PPORun, sharing: Sharing) -> str:
    """Where the value function is."""
    if "value" in sharing.shared:
        return "value: an adapter of its own on the policy's base"
    return "value: a model of its own" if run.stage.separate_critic else "value: a head on the policy's trunk"


def separate_critic(session: Session, run: PPORun, tokenizer: Any, sharing: Sharing) -> RewardModel:
    """A value model of its own: the reward model, `--critic_model_name`, or the policy with a head that starts at zero."""
    flag, name = value_source(run)
    peft = critic_adapter(run)
    options = session.load_options(flag, trained=True)
    if peft.peft is None:
        options = replace(options, dtype=torch.float32)
    elif run.model.quantization_bits() is not None:
        options = session.quantized(options)
    name = name or run.model.model_name_or_path
    config, start = None, name
    if sharing.value_continues:
        config, start = continued(AdapterFiles.read(name), "SEQ_CLS"), adapter_base(name)
    classifier = load_sequence_classifier(start, options, tokenizer.pad_token_id)
    if flag == "--model_name":
        torch.nn.init.zeros_(classifier.score.weight)
    with fresh_value(session):
        model = session.with_adapter(classifier, "SEQ_CLS", peft, config)
    if config is not None:
        load_weights_into(model, name)
    return RewardModel(model)


def value_source(run: PPORun) -> tuple[str, str | None]:
    """(flag, name) of what a value function that is more than a head starts from; no name: from the policy."""
    if run.stage.init_value_with_reward:
        return "--reward_model_name", run.stage.reward_model_name
    if run.stage.critic_model_name is not None:
        return "--critic_model_name", run.stage.critic_model_name
    return "--model_name", None


def check_critic_tokenizer(session: Session, run: PPORun, tokenizer: Any) -> None:
    """A value model reads the policy's tokens: they must mean the same to it."""
    flag, name = value_source(run)
    if not run.stage.separate_critic or name is None or not has_tokenizer(name):
        return
    if not same_tokenizer(tokenizer, session.tokenizer(name, flag)):
        raise UserError(
            f"{flag}: {name} has another tokenizer than the policy, whose tokens a value model reads; leave "
            "--init_value_with_reward or --critic_model_name out"
        )


def reward_statistics(run: PPORun) -> RewardStatistics | None:
    """What scores are normalised by: as given, or as saved with the reward model, if it was.

    Raises:
        UserError: `--normalize_scores` cannot act.
    """
    name, ppo = run.stage.reward_model_name, run.stage
    if name is not None:
        check_reward_model(name, "--reward_model_name")
    if ppo.reward_mean is not None and ppo.reward_std is not None:
        return RewardStatistics(ppo.reward_mean, ppo.reward_std, count=0)
    statistics = None if name is None else RewardStatistics.load(name)
    if ppo.normalize_scores and (statistics is None or statistics.std <= 0):
        raise UserError(
            f"--normalize_scores: {name} has no reward_statistics.json, or one without spread; train it with "
            "rlhf-hw reward, give --reward_mean and --reward_std, or --normalize_scores false"
        )
    return statistics


def reward_scorer(
    session: Session, run: PPORun, tokenizer: Any, shapes: RolloutShapes, sharing: Sharing, roles: ActorCritic
) -> Scorer:
    """The reward model with its tokenizer."""
    name = run.stage.reward_model_name
    assert name is not None
    own = session.tokenizer(name, "--reward_model_name") if has_tokenizer(name) else tokenizer
    same, together = same_tokenizer(tokenizer, own), "reward" in sharing.shared
    offloaded = run.sharding.offload_reward_model and not together
    if together:
        model = reward_on_base(session, sharing, of(roles.base))
    else:
        options = session.load_options("--reward_model_name", trained=False)
        loaded = load_reward_model(name, replace(options, quantization=None), own.pad_token_id)
        model = frozen_on_device(session, loaded, offloaded=offloaded)
    scorer = RewardModelScorer(
        model,
        tokenizer,
        None if same else own,
        batch_size=4 * run.stage.mini_batch_size,
        pad_length=shapes.sequences.pad_length,
        offloaded=offloaded,
    )
    how = ", an adapter on the policy's base" if together else ""
    session.say(f"reward: {name}{how}" + ("" if same else ", with a tokenizer of its own"))
    if together and run.sharding.offload_reward_model:
        session.say("--offload_reward_model: no effect here, the reward model has no weights of its own")
    return scorer


def reward_on_base(session: Session, sharing: Sharing, base: SharedBase) -> AdapterRole:
    """The reward model as adapters of the policy's base, under its own head."""
    files = [AdapterFiles.read(folder) for folder in sharing.shared["reward"].adapters]
    pairs = zip(sharing.shared["reward"].adapters, files, strict=True)
    names = [base.add_frozen(folder, held) for folder, held in pairs]
    score = files[-1].score
    assert score is not None  # told by `check_reward_model`
    role = AdapterRole(base, names, score).eval().requires_grad_(False)
    return role.to(session.args.device)


def frozen_on_device(session: Session, model: Any, *, offloaded: bool = False) -> Any:
    """A model that is only asked, never trained; in the host's memory where it is `offloaded`."""
    model = model.eval().requires_grad_(False)
    if not offloaded:
        model = model.to(session.args.device)
    replay_passes(session.backend, model)
    return model
