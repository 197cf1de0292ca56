"""What concerns `generate` alone: settings saved with a model, and virtual tokens."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch

from rlhf_hw.errors import UserError
from rlhf_hw.models.positions import logits_at, next_token_positions
from rlhf_hw.rollout.engine import Sampling
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


def flat(model: Any) -> Any:
    """With milder predictions, so that answers neither end nor repeat at once."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.3)
    return model


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


def test_virtual_tokens_count_in_the_context(
    make_model: Callable[..., Any], word_tokenizer: Any, architecture: str
) -> None:
    model = with_virtual_tokens(make_model(architecture), "prompt")
    prompt = [5] * (64 - 12 - 3)
    assert len(answers(model, word_tokenizer, [prompt], [1], min_new_tokens=12)[0]) == 12
    with pytest.raises(UserError, match=r"--output_max_length 12: .*context of 64"):
        answers(model, word_tokenizer, [[*prompt, 5]], [1])
