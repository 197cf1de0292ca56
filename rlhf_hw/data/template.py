"""Prompts and answers as text: through the tokenizer's chat template, or as plain Human/Assistant turns.

A prompt that is a string is used as it is. A chat prompt goes through the tokenizer's own template where it has
one, and is otherwise written as HH-RLHF's transcripts are: "\\n\\nHuman: …\\n\\nAssistant:", the answer preceded
by one space.

**How an answer ends.** Every answer learnt or scored ends with the tokenizer's EOS, because EOS is what stops
generation. If the template closes an assistant's turn with something else ("<|im_end|>" in a base model whose
EOS is "<|endoftext|>"), the answer ends with both, the template's mark first: a later turn's prompt will hold
that mark, so the model must have learnt to write it. White space that a template puts after the mark belongs to
the next turn and is not learnt.
"""

from typing import TYPE_CHECKING

from rlhf_hw.data.example import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | tuple[Message, ...]

PLAIN_SPEAKERS = {"user": "Human", "assistant": "Assistant"}


def render_prompt(example: Example, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text the policy continues with its answer."""
    return prompt_text(example.prompt, tokenizer)


def is_templated(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Does the chat template write this prompt (special tokens included)?"""
    return not isinstance(prompt, str) and tokenizer.chat_template is not None


def prompt_text(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase") -> str:
    if isinstance(prompt, str):
        return prompt
    if is_templated(prompt, tokenizer):
        return _apply_template(prompt, tokenizer, add_generation_prompt=True)
    turns = (
        message.content
        if message.role == "system"
        else f"\n\n{PLAIN_SPEAKERS[message.role]}: {message.content}"
        for message in prompt
    )
    return "".join(turns) + "\n\nAssistant:"


def answer_text(prompt: Prompt, answer: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """What follows `prompt_text(prompt)` when the assistant says `answer`, the template's end of turn included.

    Raw text: the answer as it is. Where a template writes the prompt differently once it is answered (some
    reasoning models' do), there is no such text: the answer then stands alone, and only EOS ends it.
    """
    if isinstance(prompt, str):
        return answer
    if not is_templated(prompt, tokenizer):
        return " " + answer
    before = prompt_text(prompt, tokenizer)
    whole = _apply_template((*prompt, Message("assistant", answer)), tokenizer, add_generation_prompt=False)
    if not whole.startswith(before):
        return answer
    text = whole[len(before) :].rstrip()
    head, said, end_of_turn = text.rpartition(answer.strip())
    eos = tokenizer.eos_token
    if eos and eos in end_of_turn:
        end_of_turn = end_of_turn[: end_of_turn.index(eos) + len(eos)]
    return head + said + end_of_turn


def earlier_answer_spans(
    prompt: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[int, int] | None]:
    """Where the assistant's turns stand in `prompt_text(prompt)`: [start, end) in characters, in order.

    A span begins where generation would begin and includes the template's end of turn. None for a turn that
    is not where the prompt before it ends (the template rewrote it): it cannot be learnt as it would be said.
    """
    text = prompt_text(prompt, tokenizer)
    spans: list[tuple[int, int] | None] = []
    for index, message in enumerate(prompt):
        if message.role != "assistant":
            continue
        before, answer = prompt[:index], message.content.strip()
        lead = prompt_text(before, tokenizer)
        if not text.startswith(lead) or not text[len(lead) :].lstrip().startswith(answer):
            spans.append(None)
            continue
        end = text.index(answer, len(lead)) + len(answer)
        end_of_turn = answer_text(before, message.content, tokenizer).rpartition(answer)[2].strip()
        if end_of_turn and text[end:].lstrip().startswith(end_of_turn):
            end = text.index(end_of_turn, end) + len(end_of_turn)
        spans.append((len(lead), end))
    return spans


def _apply_template(
    messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool
) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
