"""What an answer is worth: by a reward model that may read other tokens, or by a function that may be wrong."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_models import CONTEXT
from tiny_runs import prompt_rows

from rlhf_hw.data.collate import PairCollator
from rlhf_hw.data.example import Example, to_row
from rlhf_hw.data.tokenize import for_prompts, for_reward
from rlhf_hw.errors import UserError
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.rollout.engine import Rollout, assemble
from rlhf_hw.trainers.scoring import FunctionScorer, RewardModelScorer, import_function, same_tokenizer

ANSWERS = ([7, 8, 2], [9, 10, 11], [12, 2], [13, 2])  # the second was cut by the length limit


def rollout(prompts: Sequence[list[int]], answers: Sequence[Sequence[int]] = ANSWERS) -> Rollout:
    return assemble(prompts, answers, frozenset({2}), 0, lambda n: n + 3, torch.device("cpu"))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return list(prompt_rows(4))


def prompts_of(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    return [row["input_ids"] for row in rows]


# --- by a reward model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_with_one_tokenizer_the_reward_model_reads_the_policys_tokens(
    make_model: Callable[..., Any], word_tokenizer: Any, rows: list[dict[str, Any]], batch_size: int
) -> None:
    """Whatever goes together, and how far it is padded."""
    model = RewardModel(make_model(labels=1)).eval()
    scorer = RewardModelScorer(model, word_tokenizer, batch_size=batch_size, pad_length=lambda n: n + 2)
    found = scorer(rollout(prompts_of(rows)), rows)
    for row, answer, score in zip(rows, ANSWERS, found, strict=True):
        ids = torch.tensor([row["input_ids"] + list(answer)])
        torch.testing.assert_close(score, model(ids, torch.ones_like(ids))[0], rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


def byte_model(make_model: Callable[..., Any], tokenizer: Any) -> RewardModel:
    model = make_model(labels=1)
    model.resize_token_embeddings(len(tokenizer))
    return RewardModel(model).eval()


def test_with_another_tokenizer_it_reads_the_text_as_in_its_own_training(
    make_model: Callable[..., Any], word_tokenizer: Any, tiny_tokenizer: Any
) -> None:
    """A finished answer scores as the same answer did in the reward model's own batches."""
    texts = ["w5 w6", "w20", "w21 w22 w23", "w4"]
    examples = [
        Example(prompt=text, chosen=" ".join(f"w{token}" for token in answer if token != 2), rejected="w90")
        for text, answer in zip(texts, ANSWERS, strict=True)
    ]
    canonical = datasets.Dataset.from_list([to_row(example) for example in examples])
    rows = list(for_prompts(canonical, word_tokenizer, max_prompt_length=20).dataset)
    pairs = for_reward(canonical, tiny_tokenizer, max_length=60).dataset
    model = byte_model(make_model, tiny_tokenizer)
    batch = PairCollator(tiny_tokenizer.pad_token_id)(list(pairs))
    with torch.no_grad():
        trained = model(batch["input_ids"], batch["attention_mask"])[:4]

    scorer = RewardModelScorer(model, word_tokenizer, tiny_tokenizer, batch_size=2)
    found = scorer(rollout(prompts_of(rows)), rows)
    ended = [True, False, True, True]
    torch.testing.assert_close(found[ended], trained[ended], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(found[1], trained[1])  # never ended, so there is no EOS to read the score at
    open_ids = torch.tensor([pairs[1]["chosen_input_ids"][:-1]])
    with torch.no_grad():
        torch.testing.assert_close(
            found[1:2], model(open_ids, torch.ones_like(open_ids)), rtol=1e-5, atol=1e-5
        )


def test_what_is_longer_than_the_reward_models_context_is_refused(
    make_model: Callable[..., Any], word_tokenizer: Any
) -> None:
    scorer = RewardModelScorer(RewardModel(make_model("gpt2", labels=1)).eval(), word_tokenizer)
    prompt = [5] * CONTEXT
    with pytest.raises(UserError, match=rf"--reward_model_name: .*{CONTEXT + 1} .*context is {CONTEXT}"):
        scorer(rollout([prompt], [[6]]), [{"prompt": ""}])


def test_tokenizers_are_told_apart_by_what_they_do(word_tokenizer: Any, tiny_tokenizer: Any) -> None:
    assert same_tokenizer(word_tokenizer, copy.deepcopy(word_tokenizer))
    assert not same_tokenizer(word_tokenizer, tiny_tokenizer)
    longer = copy.deepcopy(tiny_tokenizer)
    longer.add_tokens(["<extra>"])
    assert not same_tokenizer(tiny_tokenizer, longer)


# --- by a function ---------------------------------------------------------------------------------------------


def score(function: Callable[..., Any], tokenizer: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    return FunctionScorer(function, tokenizer, "module:function")(rollout(prompts_of(rows)), rows)


def test_a_function_gets_prompts_and_answers_as_text(word_tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    seen: dict[str, Any] = {}

    def function(prompts: list[str], responses: list[str]) -> list[float]:
        seen.update(prompts=prompts, responses=responses)
        return [1.0, -2.0, 0.5, 3]

    assert score(function, word_tokenizer, rows).tolist() == [1.0, -2.0, 0.5, 3.0]
    assert seen["prompts"] == [row["prompt"] for row in rows]
    assert seen["responses"] == ["w7 w8", "w9 w10 w11", "w12", "w13"]


def test_a_function_gets_the_columns_it_asks_for(word_tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    seen: dict[str, Any] = {}

    def named(
        prompts: list[str], responses: list[str], chosen: list[str], absent: Any = "none"
    ) -> torch.Tensor:
        seen.update(chosen=chosen, absent=absent)
        return torch.zeros(4, dtype=torch.float64, requires_grad=True)

    def everything(responses: list[str], **columns: list[Any]) -> Any:
        seen.update(columns=columns)
        return [0] * len(responses)

    assert not score(named, word_tokenizer, rows).requires_grad
    assert seen["chosen"] == ["answer 0", "answer 1", "answer 2", "answer 3"]
    assert seen["absent"] == "none"
    score(everything, word_tokenizer, rows)
    assert set(seen["columns"]) == {"prompts", "chosen", "input_ids"}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], r"returned shape \[2\] for 4 answers"),
        ([[1.0]] * 4, r"returned shape \[4, 1\]"),
        (1.0, r"returned shape \[\]"),
        ([1.0, math.nan, 0.0, 0.0], "returned nan for answer 1"),
        ([1.0, 0.0, 0.0, math.inf], "returned inf for answer 3"),
        (None, "returned NoneType"),
        ([1.0, None, 0.0, 0.0], "returned list"),
        (["good", "bad", "good", "bad"], "returned list"),
        ({"score": 1.0}, "returned dict"),
    ],
)
def test_what_is_no_score_is_refused(
    word_tokenizer: Any, rows: list[dict[str, Any]], returned: Any, message: str
) -> None:
    with pytest.raises(UserError, match=f"--reward_function module:function: {message}"):
        score(lambda prompts, responses: returned, word_tokenizer, rows)


def test_a_function_that_cannot_be_called_is_refused(word_tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="has no parameter responses"):
        FunctionScorer(lambda prompts, completions: [], word_tokenizer, "module:function")
    with pytest.raises(UserError, match="wants solution; the data has the columns input_ids, prompt, chosen"):
        score(lambda prompts, responses, solution: [], word_tokenizer, rows)


def test_a_function_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_reward_of_this_test.py").write_text(
        "def longer(prompts, responses): return [1.0]\nnumber = 3\n"
    )
    (tmp_path / "broken_reward_of_this_test.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_function("my_reward_of_this_test:longer")([], []) == [1.0]
    for spec, message in {
        "my_reward_of_this_test": "package.module:function",
        "my_reward_of_this_test:shorter": "has no function shorter",
        "my_reward_of_this_test:number": "has no function number",
        "nowhere_to_be_found:f": "cannot import nowhere_to_be_found",
        "broken_reward_of_this_test:f": "a_module_that_is_not_there",
    }.items():
        with pytest.raises(UserError, match=message):
            import_function(spec)
