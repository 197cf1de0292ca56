"""Answers come from the policy's distribution, and each from its own prompt and seed alone."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch

from backends.shapes import DynamicShapes, RolloutShapes
from rlhf_hw.errors import UserError
from rlhf_hw.models.positions import logits_at, next_token_positions
from rlhf_hw.rollout.engine import Rollout, Sampling, StopReason
from rlhf_hw.rollout.generate import GenerateEngine

PROMPTS = [[5, 9, 13], [7], [11, 30, 31, 40, 41, 42], [8, 8]]
SEEDS = [101, 202, 303, 404]


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    batch: int | None = None,
    **how: Any,
) -> list[list[int]]:
    sampling = Sampling(**{"max_new_tokens": 12, **how})
    return (
        GenerateEngine(tokenizer, batch_size=batch).generate(model, prompts, sampling, seeds).response_ids()
    )


def next_token_counts(model: Any, tokenizer: Any, prompt: list[int], draws: int, **how: Any) -> torch.Tensor:
    """How often each token is the first of an answer [V]."""
    sampling = Sampling(max_new_tokens=1, **how)
    rollout = GenerateEngine(tokenizer).generate(model, [prompt] * draws, sampling, range(draws))
    return torch.bincount(rollout.input_ids[:, len(prompt)], minlength=96)


@torch.no_grad()
def probabilities(model: Any, prompt: list[int], temperature: float = 1.0) -> torch.Tensor:
    return (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)


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


def flat(model: Any) -> Any:
    """With milder predictions, so that answers neither end nor repeat at once."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.3)
    return model


def test_greedy_answers_are_those_of_plain_generate(
    make_model: Callable[..., Any], word_tokenizer: Any, architecture: str
) -> None:
    model = make_model(architecture)
    found = answers(model, word_tokenizer, PROMPTS, SEEDS, temperature=0.0)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        plain = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=12,
        )
        assert plain[0, len(prompt) :].tolist() == answer


def test_an_answer_depends_on_its_prompt_and_seed_alone(
    make_model: Callable[..., Any], word_tokenizer: Any, architecture: str
) -> None:
    """Not on its neighbours, their order, how many there are at a time, or how far it is padded."""
    model = flat(make_model(architecture))
    together = answers(model, word_tokenizer, PROMPTS, SEEDS)
    assert len({tuple(answer) for answer in together}) == len(PROMPTS)
    assert answers(model, word_tokenizer, PROMPTS[::-1], SEEDS[::-1])[::-1] == together
    for batch in (1, 3):
        assert answers(model, word_tokenizer, PROMPTS, SEEDS, batch=batch) == together
    padded = GenerateEngine(word_tokenizer, RolloutShapes(DynamicShapes(at_least=13), DynamicShapes(7)))
    assert padded.generate(model, PROMPTS, Sampling(12), SEEDS).response_ids() == together
    torch.manual_seed(999)  # the global stream has no part in it
    torch.rand(5)
    assert answers(model, word_tokenizer, PROMPTS, SEEDS) == together
    assert answers(model, word_tokenizer, PROMPTS, [seed + 1 for seed in SEEDS]) != together


def test_the_global_random_stream_is_left_alone(make_model: Callable[..., Any], word_tokenizer: Any) -> None:
    model = make_model()
    before = torch.get_rng_state()
    answers(model, word_tokenizer, PROMPTS, SEEDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_are_drawn_from_the_softmax(
    make_model: Callable[..., Any], word_tokenizer: Any, architecture: str
) -> None:
    model = flat(make_model(architecture))
    expected = probabilities(model, [5, 9])
    assert (expected > 1e-3).sum() > 20
    draws = 20_000 if architecture == "llama" else 3_000
    assert_drawn_from(next_token_counts(model, word_tokenizer, [5, 9], draws), expected)


def test_temperature_top_k_and_top_p_shape_the_distribution(
    make_model: Callable[..., Any], word_tokenizer: Any
) -> None:
    model = flat(make_model())
    warm = probabilities(model, [5, 9], temperature=1.5)
    assert_drawn_from(next_token_counts(model, word_tokenizer, [5, 9], 6_000, temperature=1.5), warm)

    plain = probabilities(model, [5, 9])
    best = plain.topk(7).indices
    top_k = torch.zeros(96).scatter(0, best, plain[best])
    counts = next_token_counts(model, word_tokenizer, [5, 9], 6_000, top_k=7)
    assert_drawn_from(counts, top_k / top_k.sum())

    ordered, order = plain.sort(descending=True)
    kept = order[: int((ordered.cumsum(0) < 0.6).sum()) + 1]
    top_p = torch.zeros(96).scatter(0, kept, plain[kept])
    counts = next_token_counts(model, word_tokenizer, [5, 9], 6_000, top_p=0.6)
    assert_drawn_from(counts, top_p / top_p.sum())


def eager_to_end(model: Any, likely: int = 2, strength: float = 40.0) -> Any:
    """A model that wants to say `likely` at once, whatever it is asked."""

    def favour(_module: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., likely] += strength
        return logits

    model.get_output_embeddings().register_forward_hook(favour)
    return model


def test_no_end_is_drawn_before_min_new_tokens(make_model: Callable[..., Any], word_tokenizer: Any) -> None:
    model = eager_to_end(make_model())
    assert answers(model, word_tokenizer, PROMPTS, SEEDS) == [[2]] * 4
    for answer in answers(model, word_tokenizer, PROMPTS, SEEDS, min_new_tokens=5):
        assert len(answer) == 6
        assert answer.index(2) == 5


def test_an_answer_is_cut_after_its_first_end_token(
    make_model: Callable[..., Any], word_tokenizer: Any
) -> None:
    """Also where the model has several end tokens, and where the pad token is one of them."""
    pad_is_eos = copy.deepcopy(word_tokenizer)
    pad_is_eos.pad_token = pad_is_eos.eos_token
    for tokenizer in (word_tokenizer, pad_is_eos):
        model = flat(make_model())
        model.generation_config.eos_token_id = [2, *range(40, 60)]
        rollout = GenerateEngine(tokenizer).generate(model, PROMPTS * 8, Sampling(12), range(32))
        ends = {2, *range(40, 60)}
        stops = rollout.stop_reasons.tolist()
        assert set(stops) == {StopReason.EOS, StopReason.LENGTH}
        for answer, stop in zip(rollout.response_ids(), stops, strict=True):
            assert not ends & set(answer[:-1])
            assert (answer[-1] in ends) == (stop == StopReason.EOS)
            assert stop == StopReason.EOS or len(answer) == 12


def test_a_sampled_pad_token_is_part_of_the_answer(
    make_model: Callable[..., Any], word_tokenizer: Any
) -> None:
    rollout = GenerateEngine(word_tokenizer).generate(
        eager_to_end(make_model(), likely=0), PROMPTS, Sampling(3), SEEDS
    )
    assert rollout.response_ids() == [[0, 0, 0]] * 4
    assert rollout.attention_mask.sum(1).tolist() == [len(prompt) + 3 for prompt in PROMPTS]


def test_the_record_holds_prompts_then_answers_right_padded(
    make_model: Callable[..., Any], word_tokenizer: Any
) -> None:
    rollout: Rollout = GenerateEngine(word_tokenizer, RolloutShapes(sequences=DynamicShapes(8))).generate(
        flat(make_model()), PROMPTS, Sampling(12), SEEDS
    )
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


def test_the_settings_saved_with_a_model_do_not_reach_the_rollout(
    make_model: Callable[..., Any], word_tokenizer: Any
) -> None:
    """Chat models ship a generation config that samples, penalises repetition and forbids words."""
    model = flat(make_model())
    greedy = answers(model, word_tokenizer, PROMPTS, SEEDS, temperature=0.0)
    sampled = answers(model, word_tokenizer, PROMPTS, SEEDS)
    shipped = {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 3,
        "top_p": 0.5,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 9,
        "suppress_tokens": list(range(4, 50)),
        "return_dict_in_generate": True,
    }
    for name, value in shipped.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    assert answers(model, word_tokenizer, PROMPTS, SEEDS, temperature=0.0) == greedy
    assert answers(model, word_tokenizer, PROMPTS, SEEDS) == sampled
    assert model.generation_config.to_dict() == before


def with_virtual_tokens(model: Any, kind: str) -> Any:
    torch.manual_seed(5)
    width = model.get_input_embeddings().embedding_dim
    task: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    config = {
        "prompt": lambda: peft.PromptTuningConfig(**task, token_dim=width),
        "ptun": lambda: peft.PromptEncoderConfig(**task, token_dim=width, encoder_hidden_size=16),
        "prefix": lambda: peft.PrefixTuningConfig(**task),
    }[kind]()
    return peft.get_peft_model(model, config).eval()


def test_a_new_lora_adapter_changes_no_answer(
    make_model: Callable[..., Any], word_tokenizer: Any, architecture: str
) -> None:
    model = flat(make_model(architecture))
    plain = answers(model, word_tokenizer, PROMPTS, SEEDS)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))
    assert answers(adapted, word_tokenizer, PROMPTS, SEEDS) == plain


@pytest.mark.parametrize("adapter", ["none", "prompt", "prefix", "ptun"])
def test_the_sampler_sees_the_distribution_that_is_trained(
    make_model: Callable[..., Any], word_tokenizer: Any, architecture: str, adapter: str
) -> None:
    """Each greedy token is the likeliest in the right-padded forward pass of training, virtual tokens or not."""
    model = flat(make_model(architecture))
    if adapter != "none":
        model = with_virtual_tokens(model, adapter)
    rollout = GenerateEngine(word_tokenizer).generate(model, PROMPTS, Sampling(12, temperature=0.0), SEEDS)
    where = next_token_positions(rollout.response_mask)
    inputs = {"input_ids": rollout.input_ids, "attention_mask": rollout.attention_mask}
    with torch.no_grad():
        logits = logits_at(model, where, **inputs).logits
    assert logits.argmax(-1).tolist() == rollout.input_ids[rollout.response_mask].tolist()
    sampled = answers(model, word_tokenizer, PROMPTS, SEEDS)
    assert answers(model, word_tokenizer, PROMPTS, SEEDS, batch=1) == sampled


def test_the_mode_of_the_policy_is_kept(make_model: Callable[..., Any], word_tokenizer: Any) -> None:
    model = make_model("gpt2", dropout=0.5)
    expected = answers(model, word_tokenizer, PROMPTS, SEEDS)
    model.train()
    assert answers(model, word_tokenizer, PROMPTS, SEEDS) == expected
    assert model.training


def test_an_empty_prompt_is_refused(make_model: Callable[..., Any], word_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="empty"):
        answers(make_model(), word_tokenizer, [[5], []], [1, 2])


@pytest.mark.parametrize("virtual", [0, 3])
def test_answers_may_fill_the_context_and_not_one_token_more(
    make_model: Callable[..., Any], word_tokenizer: Any, architecture: str, virtual: int
) -> None:
    model = make_model(architecture)
    if virtual:
        model = with_virtual_tokens(model, "prompt")
    prompt = [5] * (64 - 12 - virtual)
    assert len(answers(model, word_tokenizer, [prompt], [1], min_new_tokens=12)[0]) == 12
    with pytest.raises(UserError, match=r"--output_max_length 12: .*context of 64"):
        answers(model, word_tokenizer, [[*prompt, 5]], [1])
