"""Canonical rows → the token ids of prompt and answers.

Prompt and answer are tokenized apart and joined: a generation in PPO starts from exactly the ids that SFT and
the reward model saw. A beginning-of-sequence token is written only where the tokenizer writes one of itself, and
never before a chat template's text, which brings its own. An answer ends with EOS (see `rlhf_hw.data.template`),
which is learnt like any other token even where the padding token is the same one: masks come from positions,
never from ids.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jinja2 import TemplateError

from rlhf_hw.data.example import Example, from_row
from rlhf_hw.data.template import answer_text, earlier_answer_spans, is_templated, prompt_text
from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
Batch = dict[str, list[Any]]
Side = Literal["chosen", "rejected"]


class Encoded(NamedTuple):
    """One row of a batch as ids. Where `refusal` is not "", the chat template refused it and nothing else counts.

    `prompt`: its first `prefix_length` tokens are the tokenizer's own (BOS). `answers`: each ends in EOS.
    `turn_mask`: 1 on the prompt's tokens that the assistant said earlier and is to learn.
    """

    example: Example
    refusal: str
    prompt_text: str
    prompt: Ids
    prefix_length: int
    answers: list[Ids]
    turn_mask: list[int]
    turns_not_found: int


def special_prefix(tokenizer: "PreTrainedTokenizerBase") -> Ids:
    """The tokens this tokenizer puts before a text of itself (BOS, or none); those it puts after are not wanted.

    Raises:
        UserError: its vocabulary has a token for no text at all, or it changes a text's tokens with those it puts around.
    """
    text, bare = _some_text(tokenizer)
    full = tokenizer(text)["input_ids"]
    for start in range(len(full)):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    raise UserError(
        f"--tokenizer_name: {text!r} is {bare} to the tokenizer, and {full} with its special tokens, which does not hold "
        "the former: prompts and answers cannot be joined; another tokenizer is needed"
    )


def _some_text(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, Ids]:
    """A text that this tokenizer has tokens for, and these: "a", or a token's own text where the vocabulary has no "a"."""
    for text in _texts(tokenizer):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if text and ids:
            return text, list(ids)
    raise UserError(
        "--tokenizer_name: the tokenizer has no token for any text; its vocabulary holds special tokens alone"
    )


def _texts(tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    yield "a"
    special = set(tokenizer.all_special_ids)
    for number in range(len(tokenizer)):
        if number not in special:
            yield tokenizer.decode([number])


def encode(
    batch: Batch,
    tokenizer: "PreTrainedTokenizerBase",
    sides: tuple[Side, ...],
    *,
    want_turns: bool = False,
) -> Iterator[Encoded]:
    """The rows of a batch, in order. Texts are tokenized a batch at a time: fast tokenizers do that in parallel."""
    examples = [
        from_row(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)
    ]
    prompts: list[str] = []
    answers: list[list[str]] = [[] for _ in sides]
    spans: list[list[tuple[int, int] | None]] = []
    refusals: list[str] = []
    for example in examples:
        prompt, said, refusal = "", [""] * len(sides), ""
        found: list[tuple[int, int] | None] = []
        try:
            prompt = prompt_text(example.prompt, tokenizer)
            given = {"chosen": example.chosen, "rejected": example.rejected}
            said = [answer_text(example.prompt, given[side] or "", tokenizer) for side in sides]
            if want_turns and example.learn_all_turns and not isinstance(example.prompt, str):
                found = earlier_answer_spans(example.prompt, tokenizer)
        except (
            TemplateError
        ) as error:  # templates raise it themselves: no system role, roles that must alternate
            refusal = f"the chat template refuses it: {error}"
        prompts.append(prompt)
        refusals.append(refusal)
        spans.append(found)
        for column, text in zip(answers, said, strict=True):
            column.append(text)

    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answer_ids = [_answer_ids(texts, examples, tokenizer) for texts in answers]
    own_prefix = special_prefix(tokenizer)
    for index, example in enumerate(examples):
        prefix = [] if is_templated(example.prompt, tokenizer) else own_prefix
        yield Encoded(
            example=example,
            refusal=refusals[index],
            prompt_text=prompts[index],
            prompt=prefix + prompt_ids[index],
            prefix_length=len(prefix),
            answers=[column[index] for column in answer_ids],
            turn_mask=[0] * len(prefix)
            + _turn_mask(prompts[index], prompt_ids[index], spans[index], tokenizer),
            turns_not_found=spans[index].count(None),
        )


def _answer_ids(texts: list[str], examples: list[Example], tokenizer: "PreTrainedTokenizerBase") -> list[Ids]:
    """Ids of answers that continue a prompt, each ending in EOS."""
    first = tokenizer.convert_ids_to_tokens(_some_text(tokenizer)[1])[0]
    if first.startswith("▁"):
        # A SentencePiece tokenizer begins every text with a space of its own: with ours that would make two.
        texts = [
            text.removeprefix(" ") if not isinstance(example.prompt, str) else text
            for text, example in zip(texts, examples, strict=True)
        ]
    eos = tokenizer.eos_token_id
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [ids if ids and ids[-1] == eos else [*ids, eos] for ids in encoded]


def _turn_mask(
    text: str, ids: Ids, spans: list[tuple[int, int] | None], tokenizer: "PreTrainedTokenizerBase"
) -> list[int]:
    """1 for each token of `ids` (the tokens of `text`) that starts inside one of the spans of characters."""
    located = [span for span in spans if span is not None]
    mask = [0] * len(ids)
    if not located:
        return mask
    if tokenizer.is_fast:
        starts = [
            start
            for start, _ in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
                "offset_mapping"
            ]
        ]
        return [int(any(first <= start < end for first, end in located)) for start in starts]
    for first, end in located:  # no offsets: the tokens of the text before a span are counted instead
        begin, stop = (
            len(tokenizer(text[:cut], add_special_tokens=False)["input_ids"]) for cut in (first, end)
        )
        mask[begin:stop] = [1] * (min(stop, len(mask)) - begin)
    return mask


def open_answer_ids(row: Encoded, tokenizer: "PreTrainedTokenizerBase") -> Ids:
    """Ids of an answer that was cut off: its text with nothing behind it."""
    text = answer_text(row.example.prompt, row.example.chosen or "", tokenizer)
    said = row.example.chosen or ""
    lead = text[: text.rfind(said)] if said else ""
    return tokenizer(lead + said, add_special_tokens=False)["input_ids"]
