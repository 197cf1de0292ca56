"""SFT: what a batch's loss is, however its examples are laid out."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_runs import RAGGED, sft_rows, sft_trainer
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from rlhf_hw.data.collate import SFTCollator
from rlhf_hw.errors import UserError
from rlhf_hw.models.adapters import adapter_config, attach_adapter


def packed_in_pairs(rows: datasets.Dataset) -> list[dict[str, Any]]:
    """Two examples a row."""
    listed = list(rows)
    return [
        {
            "input_ids": one["input_ids"] + two["input_ids"],
            "loss_mask": one["loss_mask"] + two["loss_mask"],
            "seq_lengths": [len(one["input_ids"]), len(two["input_ids"])],
        }
        for one, two in zip(listed[::2], listed[1::2], strict=True)
    ]


def in_pairs(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 2).sum(dim=1)


def test_the_loss_is_the_mean_negative_log_probability_of_the_targets(
    make_model: Callable[..., Any], architecture: str, tmp_path: Path
) -> None:
    model = make_model(architecture)
    trainer = sft_trainer(tmp_path, model)
    by_hand, count = 0.0, 0
    for row in sft_rows():
        logprobs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, token in enumerate(row["input_ids"]):
            if row["loss_mask"][position] and position > 0:
                by_hand -= logprobs[position - 1, token].item()
                count += 1
    nll, targets = trainer._row_losses(model, SFTCollator(0)(list(sft_rows())))
    assert int(targets.sum()) == count == int(trainer.count_items(SFTCollator(0)(list(sft_rows()))))
    assert float(nll.sum()) == pytest.approx(by_hand, rel=1e-5)


def test_packed_examples_lose_what_they_lose_apart(
    make_model: Callable[..., Any], architecture: str, tmp_path: Path
) -> None:
    model, rows = make_model(architecture), sft_rows()
    trainer = sft_trainer(tmp_path, model)
    apart, apart_targets = trainer._row_losses(model, SFTCollator(0)(list(rows)))
    packed, packed_targets = trainer._row_losses(model, SFTCollator(0)(packed_in_pairs(rows)))
    torch.testing.assert_close(packed, in_pairs(apart), rtol=1e-5, atol=1e-5)
    assert packed_targets.tolist() == in_pairs(apart_targets).tolist()


def test_packed_examples_stay_apart_in_kernels_that_read_position_ids(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    """As flash attention in transformers: boundaries are looked for in a batch of one row only."""

    def flash_by_hand(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, position_ids: Any = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        length = query.shape[2]
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        if query.shape[0] == 1:
            sequence = (position_ids[0] == 0).cumsum(0)
            allowed = allowed & (sequence[:, None] == sequence)
        groups = module.num_key_value_groups
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        out = scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=module.scaling)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("flash_by_hand", flash_by_hand)
    AttentionMaskInterface.register("flash_by_hand", lambda *args, **kwargs: None)
    model, rows = make_model("llama"), sft_rows()
    trainer = sft_trainer(tmp_path, model)
    apart, _ = trainer._row_losses(model, SFTCollator(0)(list(rows)))
    model.config._attn_implementation = "flash_by_hand"
    packed, _ = trainer._row_losses(model, SFTCollator(0)(packed_in_pairs(rows)))
    torch.testing.assert_close(packed, in_pairs(apart), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "ptun"])
def test_packing_with_virtual_tokens_is_refused(
    make_model: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    config = adapter_config(
        kind,
        task_type="CAUSAL_LM",
        rank=4,
        alpha=8,
        dropout=0.0,
        target_modules=None,
        all_linear=False,
        num_virtual_tokens=3,
        ptun_hidden_size=16,
        adapter_len=3,
        adapter_layers=1,
    )
    model = attach_adapter(make_model(), config, gradient_checkpointing=False)
    trainer = sft_trainer(tmp_path, model)
    with pytest.raises(UserError, match="--packing"):
        trainer._row_losses(model, SFTCollator(0)(packed_in_pairs(sft_rows())))


def test_packing_with_a_kernel_that_mixes_examples_is_refused(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_model()
    model.config._attn_implementation = "eager"
    with pytest.raises(UserError, match=r"--packing.*eager"):
        sft_trainer(tmp_path, model)._row_losses(model, SFTCollator(0)(packed_in_pairs(sft_rows())))


def test_evaluation_counts_every_token_the_same(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """Batches of one give what batches of eight give, although their lengths differ."""
    found = [
        sft_trainer(tmp_path, make_model(), per_device_eval_batch_size=size).evaluate() for size in (1, 3, 8)
    ]
    for metrics in found:
        assert metrics["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-5)
        assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]), rel=1e-5)


def test_a_batch_without_targets_gives_zeros_and_no_nan(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    """As a micro-batch may be whose answers were all cut off; data-parallel training still needs its gradients."""
    model = make_model()
    batch = SFTCollator(0)([{"input_ids": [5, 6, 7], "loss_mask": [0, 0, 0]}])
    trainer = sft_trainer(tmp_path, model)
    loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(0.0))
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_every_example_is_seen_once_an_epoch_in_an_order_of_its_own(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = sft_trainer(tmp_path, make_model(), max_steps=12)
    seen: list[int] = []
    collate = trainer.data_collator

    def watch(rows: list[dict[str, Any]]) -> Any:
        seen.extend(len(row["input_ids"]) for row in rows)
        return collate(rows)

    trainer.data_collator = watch
    trainer.train()
    epochs = [seen[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(epoch) == sorted(RAGGED) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
