"""Prompts that a program hands over, as the rows that PPO answers: those of `rlhf_hw.data.tokenize.for_prompts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_hw.data.encode import encode
from rlhf_hw.data.example import Example, Message, to_row
from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: a text, used as it is, or a conversation of {"role", "content"}, which the tokenizer's chat template renders
Prompt = str | Sequence[Mapping[str, str]]


def prompt_rows(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_prompt_length: int
) -> list[dict[str, Any]]:
    """A row for each prompt, in order.

    Raises:
        UserError: a prompt is empty, is longer than `max_prompt_length` tokens, or is refused by the chat template.
    """
    batch: dict[str, list[Any]] = {}
    for prompt in prompts:
        said = prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)  # type: ignore[arg-type]
        for name, value in to_row(Example(said, None)).items():
            batch.setdefault(name, []).append(value)
    rows = []
    for number, encoded in enumerate(encode(batch, tokenizer, ())):
        length = len(encoded.prompt)
        if encoded.refusal or not 0 < length <= max_prompt_length:
            fault = encoded.refusal or (
                f"{length} tokens are more than max_prompt_length {max_prompt_length}" if length else "empty"
            )
            raise UserError(f"prompt {number}: {fault}")
        canonical = to_row(encoded.example)
        rows.append(
            {
                "input_ids": encoded.prompt,
                "prompt": encoded.prompt_text,
                "canonical_prompt": canonical["prompt"],
                "prompt_is_chat": canonical["prompt_is_chat"],
                "chosen": None,
                "source": "",
            }
        )
    return rows
