"""A score belongs to its row: neighbours, padding and the padding's id have no part in it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_hw.errors import UserError
from rlhf_hw.models.load import LoadOptions, load_reward_model, load_sequence_classifier
from rlhf_hw.models.reward_model import RewardModel, RewardStatistics, last_real_token

PAD, EOS = 0, 2
#: rows that end in EOS, one with an EOS inside
ROWS = ([7, 11, 30, EOS], [5, EOS, 41, 8, 77, 12, EOS], [9, EOS], [33, 34, 35, 36, 37])


def padded(
    rows: Any, side: str = "right", extra: int = 0, pad: int = PAD
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, columns] = torch.tensor(row)
        mask[i, columns] = 1
    return ids, mask


@pytest.fixture
def reward_model(make_model: Callable[..., Any], architecture: str) -> RewardModel:
    return RewardModel(make_model(architecture, labels=1)).eval()


@torch.no_grad()
def test_a_score_depends_on_its_own_row_alone(reward_model: RewardModel) -> None:
    alone = torch.cat([reward_model(*padded([row])) for row in ROWS])
    assert alone.unique().numel() == len(ROWS)
    for side in ("right", "left"):
        for extra in (0, 5):
            for pad in (PAD, EOS, 50):
                found = reward_model(*padded(ROWS, side, extra, pad))
                torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
    backwards = reward_model(*padded(ROWS[::-1])).flip(0)
    torch.testing.assert_close(backwards, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_scores_are_those_of_plain_transformers(reward_model: RewardModel, tmp_path: Path) -> None:
    """Right padded, and with a pad token that is not EOS: there transformers finds the end of a row too."""
    reward_model.config.pad_token_id = PAD
    reward_model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, mask = padded(ROWS)
    theirs = plain(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    torch.testing.assert_close(reward_model(ids, mask), theirs, rtol=1e-5, atol=1e-5)
    reloaded = load_reward_model(str(tmp_path), LoadOptions(), PAD).eval()
    torch.testing.assert_close(reloaded(ids, mask), reward_model(ids, mask), rtol=0, atol=0)


@torch.no_grad()
def test_an_adapter_is_saved_with_its_head_and_scores_the_same_when_loaded(
    make_model: Callable[..., Any], architecture: str, tmp_path: Path
) -> None:
    make_model(architecture).save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    base = load_sequence_classifier(str(tmp_path / "base"), LoadOptions(), PAD)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, init_lora_weights=False)
    trained = RewardModel(peft.get_peft_model(base, config)).eval()
    trained.save_pretrained(tmp_path / "adapter")
    ids, mask = padded(ROWS)
    expected = trained(ids, mask)

    ours = load_reward_model(str(tmp_path / "adapter"), LoadOptions(), PAD).eval()
    torch.testing.assert_close(ours(ids, mask), expected, rtol=1e-4, atol=1e-4)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    plain.config.pad_token_id = PAD
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    logits = theirs(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_as_a_critic_it_reads_every_position(reward_model: RewardModel) -> None:
    """The value at a position is the score of the row that ends there."""
    ids, mask = padded(ROWS)
    values = reward_model.values_at(mask.bool(), ids, mask)
    prefixes = [row[: end + 1] for row in ROWS for end in range(len(row))]
    torch.testing.assert_close(values, reward_model(*padded(prefixes)), rtol=1e-4, atol=1e-4)


def test_a_new_head_has_the_published_spread(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    torch.manual_seed(0)
    heads = [load_sequence_classifier(str(tmp_path), LoadOptions(), PAD).score.weight for _ in range(40)]
    assert torch.stack(heads).std().item() == pytest.approx(1 / 33**0.5, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_fp32_whatever_the_backbone(
    make_model: Callable[..., Any], tmp_path: Path, dtype: Any
) -> None:
    make_model().save_pretrained(tmp_path)
    model = RewardModel(load_sequence_classifier(str(tmp_path), LoadOptions(dtype=dtype), PAD))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(*padded(ROWS)).dtype is torch.float32


def test_gradients_reach_the_real_tokens_of_a_row_only(make_model: Callable[..., Any]) -> None:
    model = RewardModel(make_model(labels=1))
    ids, mask = padded([[5, 6, 7], [8, 9, 10, 11, 12]], pad=50)
    model(ids, mask)[0].backward()
    touched = model.model.get_input_embeddings().weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [5, 6, 7]


def test_recomputing_activations_changes_no_gradient(
    make_model: Callable[..., Any], architecture: str
) -> None:
    plain = RewardModel(make_model(architecture, labels=1)).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, saving):
        model(*padded(ROWS)).sum().backward()
    for one, two in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_the_last_real_token_is_found_on_either_side_and_inside() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]])
    assert last_real_token(mask).tolist() == [1, 3, 2, 0]


def test_statistics_are_read_back_as_written(tmp_path: Path) -> None:
    assert RewardStatistics.load(tmp_path) is None
    statistics = RewardStatistics(mean=-0.1, std=1 / 3, count=17)
    statistics.save(tmp_path)
    assert RewardStatistics.load(tmp_path) == statistics


def test_a_model_without_a_score_head_is_refused() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=96, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(UserError, match="score"):
        RewardModel(BertForSequenceClassification(config))


def test_a_language_model_is_no_reward_model(tiny_llama_dir: str) -> None:
    with pytest.raises(UserError, match=r"--reward_model_name.*no score head"):
        load_reward_model(tiny_llama_dir, LoadOptions(flag="--reward_model_name"), PAD)


def test_the_score_head_is_loaded_to_the_bit_where_the_rest_is_bf16(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    trained = load_sequence_classifier(str(tiny_llama_dir), LoadOptions(), 0)
    trained.save_pretrained(tmp_path)
    again = load_sequence_classifier(str(tmp_path), LoadOptions(dtype=torch.bfloat16), 0)
    assert again.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(again.score.weight, trained.score.weight)
