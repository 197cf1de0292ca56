"""What every rollout engine must do. A new one is added to `ENGINES` in engines.py, and passes this."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from decoders import decoder
from engines import DEVICE, NAMES, decoders_of
from tiny_models import tiny_model

from backends.shapes import DynamicShapes, RolloutShapes
from rlhf_hw.errors import UserError
from rlhf_hw.rollout.engine import Rollout, Sampling, StopReason

PROMPTS = [[5, 9, 13], [7], [11, 30, 31, 40, 41, 42], [8, 8]]
SEEDS = [101, 202, 303, 404]
#: optimum-habana has its own decoders for these
PAIRS = [
    (engine, name)
    for engine in NAMES
    for name in (("llama", "gpt2", "opt") if DEVICE == "hpu" else decoders_of(engine))
]
Engine = Callable[..., Any]
#: thousands of answers are not for an engine that takes prompts two at a time
quick_engines = pytest.mark.parametrize(
    "engine", [name for name in NAMES if name != "compact-late"], indirect=True
)


def policy(name: str = "llama") -> Any:
    return decoder(name).to(DEVICE)


def answers(
    make_engine: Engine,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    *,
    batch: int | None = None,
    **how: Any,
) -> list[list[int]]:
    sampling = Sampling(**{"max_new_tokens": 12, **how})
    made = make_engine(tokenizer, batch_size=batch)
    return made.generate(model, prompts, sampling, seeds).response_ids()


def next_token_counts(
    make_engine: Engine, model: Any, tokenizer: Any, prompt: list[int], draws: int, **how: Any
) -> torch.Tensor:
    """How often each token is the first of an answer [V]."""
    sampling = Sampling(max_new_tokens=1, **how)
    rollout = make_engine(tokenizer).generate(model, [prompt] * draws, sampling, range(draws))
    return torch.bincount(rollout.input_ids[:, len(prompt)].cpu(), minlength=96)


@torch.no_grad()
def probabilities(model: Any, prompt: list[int], temperature: float = 1.0) -> torch.Tensor:
    return (model(torch.tensor([prompt], device=DEVICE)).logits[0, -1].cpu() / temperature).softmax(-1)


def assert_drawn_from(counts: torch.Tensor, expected: torch.Tensor) -> None:
    """Pearson's chi-square at six standard deviations, tokens expected less than 5 times taken together."""
    draws = int(counts.sum())
    often = expected * draws >= 5
    seen = torch.cat([counts[often].double(), counts[~often].sum()[None].double()])
    due = torch.cat([expected[often], expected[~often].sum()[None]]).double() * draws
    seen, due = seen[due > 0], due[due > 0]
    statistic = ((seen - due).square() / due).sum()
    freedom = len(due) - 1
    assert statistic < freedom + 6 * (2 * freedom) ** 0.5, (statistic, freedom)
    assert not counts[expected == 0].any()


def eager_to_end(model: Any, likely: int = 2, strength: float = 40.0) -> Any:
    """A model that wants to say `likely` at once, whatever it is asked; with a negative strength, never."""

    def favour(_module: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., likely] += strength
        return logits

    model.get_output_embeddings().register_forward_hook(favour)
    return model


@torch.no_grad()
def plain_answer(model: Any, prompt: list[int], most: int = 12) -> list[int]:
    """The greedy answer of `generate` to one prompt; on another device, by whole forward passes without a cache."""
    if DEVICE == "cpu":
        inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt))}
        found = model.generate(**inputs, do_sample=False, max_new_tokens=most, pad_token_id=0)
        return found[0, len(prompt) :].tolist()
    answer: list[int] = []
    while len(answer) < most and not set(answer[-1:]) & set(model.generation_config.eos_token_id):
        ids = torch.tensor([prompt + answer], device=DEVICE)
        answer.append(int(model(ids, use_cache=False).logits[0, -1].argmax()))
    return answer


# Which tokens
@pytest.mark.parametrize(("engine", "name"), PAIRS, indirect=["engine"])
def test_greedy_answers_are_those_of_plain_generate(engine: Engine, word_tokenizer: Any, name: str) -> None:
    model = decoder(name)
    model.generation_config.eos_token_id = [2, *range(60, 70)]
    model = model.to(DEVICE)
    plain = [plain_answer(model, prompt) for prompt in PROMPTS]
    assert answers(engine, model, word_tokenizer, temperature=0.0) == plain


@pytest.mark.parametrize("name", ["llama", "opt", "mistral"] if DEVICE == "cpu" else ["llama"])
def test_an_answer_depends_on_its_prompt_and_seed_alone(
    engine: Engine, word_tokenizer: Any, name: str
) -> None:
    """Not on its neighbours, their order, how many there are at a time, or how far it is padded."""
    model = policy(name)
    together = answers(engine, model, word_tokenizer)
    assert len({tuple(answer) for answer in together}) == len(PROMPTS)
    assert answers(engine, model, word_tokenizer, PROMPTS[::-1], SEEDS[::-1])[::-1] == together
    for batch in (1, 3):
        assert answers(engine, model, word_tokenizer, batch=batch) == together
    for i, prompt in enumerate(PROMPTS):
        assert answers(engine, model, word_tokenizer, [prompt], [SEEDS[i]]) == [together[i]]
    padded = engine(word_tokenizer, shapes=RolloutShapes(DynamicShapes(at_least=13), DynamicShapes(7)))
    assert padded.generate(model, PROMPTS, Sampling(12), SEEDS).response_ids() == together
    torch.manual_seed(999)  # the global stream has no part in it
    before = torch.get_rng_state()
    assert answers(engine, model, word_tokenizer) == together
    assert torch.equal(torch.get_rng_state(), before)
    assert answers(engine, model, word_tokenizer, seeds=[seed + 1 for seed in SEEDS]) != together


def test_a_drawn_padding_token_repeats_nothing_of_the_padding(engine: Engine, word_tokenizer: Any) -> None:
    """An answer without repetitions depends on its own row alone, also where it holds the pad token."""
    model = eager_to_end(policy(), likely=0, strength=4.0)
    together = answers(engine, model, word_tokenizer, repetition_ngram=2)
    assert any(0 in answer for answer in together)
    assert answers(engine, model, word_tokenizer, repetition_ngram=2, batch=1) == together


# From which distribution
@quick_engines
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tokens_are_drawn_from_the_softmax(engine: Engine, word_tokenizer: Any, name: str) -> None:
    model = policy(name)
    expected = probabilities(model, [5, 9])
    assert (expected > 1e-3).sum() > 20
    assert_drawn_from(next_token_counts(engine, model, word_tokenizer, [5, 9], 4_000), expected)


@quick_engines
def test_temperature_top_k_and_top_p_shape_the_distribution(engine: Engine, word_tokenizer: Any) -> None:
    model = policy()
    warm = probabilities(model, [5, 9], temperature=1.5)
    assert_drawn_from(next_token_counts(engine, model, word_tokenizer, [5, 9], 3_000, temperature=1.5), warm)

    plain = probabilities(model, [5, 9])
    best = plain.topk(7).indices
    top_k = torch.zeros(96).scatter(0, best, plain[best])
    counts = next_token_counts(engine, model, word_tokenizer, [5, 9], 3_000, top_k=7)
    assert_drawn_from(counts, top_k / top_k.sum())

    ordered, order = plain.sort(descending=True)
    kept = order[: int((ordered.cumsum(0) < 0.6).sum()) + 1]
    top_p = torch.zeros(96).scatter(0, kept, plain[kept])
    counts = next_token_counts(engine, model, word_tokenizer, [5, 9], 3_000, top_p=0.6)
    assert_drawn_from(counts, top_p / top_p.sum())


# Where answers end
def test_no_end_is_drawn_before_min_new_tokens(engine: Engine, word_tokenizer: Any) -> None:
    """Here all answers end at once: at the first step, or at the first that may end them."""
    model = eager_to_end(policy())
    assert answers(engine, model, word_tokenizer) == [[2]] * 4
    for answer in answers(engine, model, word_tokenizer, min_new_tokens=5):
        assert len(answer) == 6
        assert answer.index(2) == 5


def test_answers_that_never_end_have_the_longest_length(engine: Engine, word_tokenizer: Any) -> None:
    model = eager_to_end(policy(), strength=-100.0)
    rollout = engine(word_tokenizer).generate(model, PROMPTS, Sampling(12), SEEDS)
    assert rollout.response_lengths.tolist() == [12] * 4
    assert rollout.stop_reasons.tolist() == [StopReason.LENGTH] * 4


def test_an_answer_is_cut_after_its_first_end_token(engine: Engine, word_tokenizer: Any) -> None:
    """Also where there are several, the model's or asked for, and where the pad token is one of them."""
    pad_is_eos = copy.deepcopy(word_tokenizer)
    pad_is_eos.pad_token = pad_is_eos.eos_token
    for tokenizer in (word_tokenizer, pad_is_eos):
        model = policy()
        model.generation_config.eos_token_id = [2, *range(40, 50)]
        sampling = Sampling(12, end_tokens=frozenset(range(50, 60)))
        rollout = engine(tokenizer).generate(model, PROMPTS * 8, sampling, range(32))
        ends = {2, *range(40, 60)}
        stops = rollout.stop_reasons.tolist()
        assert set(stops) == {StopReason.EOS, StopReason.LENGTH}
        for answer, stop in zip(rollout.response_ids(), stops, strict=True):
            assert not ends & set(answer[:-1])
            assert (answer[-1] in ends) == (stop == StopReason.EOS)
            assert stop == StopReason.EOS or len(answer) == 12


def test_a_drawn_pad_token_is_part_of_the_answer(engine: Engine, word_tokenizer: Any) -> None:
    model = eager_to_end(policy(), likely=0)
    rollout = engine(word_tokenizer).generate(model, PROMPTS, Sampling(3), SEEDS)
    assert rollout.response_ids() == [[0, 0, 0]] * 4
    assert rollout.attention_mask.sum(1).tolist() == [len(prompt) + 3 for prompt in PROMPTS]


# The record
def test_the_record_holds_prompts_then_answers_right_padded(engine: Engine, word_tokenizer: Any) -> None:
    shapes = RolloutShapes(sequences=DynamicShapes(8))
    rollout: Rollout = engine(word_tokenizer, shapes=shapes).generate(policy(), PROMPTS, Sampling(12), SEEDS)
    assert rollout.input_ids.shape[1] % 8 == 0
    for i, prompt in enumerate(PROMPTS):
        answer = rollout.response_ids()[i]
        total = len(prompt) + len(answer)
        assert rollout.input_ids[i, :total].tolist() == prompt + answer
        assert rollout.attention_mask[i].tolist() == [1] * total + [0] * (rollout.input_ids.shape[1] - total)
        assert rollout.response_mask[i].nonzero().flatten().tolist() == list(range(len(prompt), total))
        assert rollout.response_mask_padded()[i].sum() == len(answer) == rollout.response_lengths[i]
    texts = rollout.texts(word_tokenizer)
    assert texts[0] == word_tokenizer.decode(rollout.response_ids()[0], skip_special_tokens=True)


# The policy
def test_the_adapter_that_is_active_answers(engine: Engine, word_tokenizer: Any) -> None:
    """A new LoRA adapter changes nothing; of two that are trained each answers as when it is merged into the weights."""
    plain = answers(engine, policy(), word_tokenizer)
    fresh = peft.get_peft_model(policy(), peft.LoraConfig(task_type="CAUSAL_LM")).to(DEVICE)
    assert answers(engine, fresh, word_tokenizer) == plain
    random = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, lora_alpha=32)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(policy(), random, adapter_name="first")
    adapted.add_adapter("second", random)
    adapted = adapted.to(DEVICE)
    found = {}
    for adapter in ("first", "second"):
        adapted.set_adapter(adapter)
        found[adapter] = answers(engine, adapted, word_tokenizer)
        merged = copy.deepcopy(adapted).merge_and_unload()
        assert found[adapter] == answers(engine, merged, word_tokenizer)
    assert len({str(answer) for answer in (plain, *found.values())}) == 3
    with adapted.disable_adapter():
        assert answers(engine, adapted, word_tokenizer) == plain


def test_the_mode_of_the_policy_is_kept(engine: Engine, word_tokenizer: Any) -> None:
    model = tiny_model("gpt2", dropout=0.5).to(DEVICE)
    expected = answers(engine, model, word_tokenizer)
    model.train()
    assert answers(engine, model, word_tokenizer) == expected
    assert model.training


# What cannot be answered
def test_an_empty_prompt_is_refused(engine: Engine, word_tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"a prompt is empty; a policy needs at least one token"):
        answers(engine, policy(), word_tokenizer, [[5], []], [1, 2])


def test_answers_may_fill_the_context_and_not_one_token_more(engine: Engine, word_tokenizer: Any) -> None:
    model = eager_to_end(policy("opt"), strength=-100.0)
    prompt = [5] * (64 - 12)
    assert len(answers(engine, model, word_tokenizer, [prompt], [1])[0]) == 12
    with pytest.raises(UserError, match=r"--output_max_length 12: with prompts of 53 tokens .*context of 64"):
        answers(engine, model, word_tokenizer, [[*prompt, 5]], [1])
