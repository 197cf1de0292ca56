"""Canonical examples → token ids, with the loss mask.

Prompt and answer are tokenized apart and joined: a generation in PPO starts from exactly the ids that SFT and
the reward model saw. A beginning-of-sequence token is written only where the tokenizer writes one of itself, and
never before a chat template's text, which brings its own. An answer ends with EOS (see `rlhf_hw.data.template`),
which is learnt like any other token even where the padding token is the same one: masks come from positions,
never from ids.

Each function returns `Tokenized(dataset, report)`. Results are cached beside the data set they are made from
(`rlhf_hw.data.fingerprint` says under which name), and made by `num_proc` processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datasets import Dataset, Features, Value
from jinja2 import TemplateError

from rlhf_hw.data.example import CANONICAL_FEATURES, Example, from_row, to_row
from rlhf_hw.data.fingerprint import fingerprint_of_code, fingerprint_of_tokenizer, fingerprint_of_values
from rlhf_hw.data.report import LengthStatistics, TokenReport, count_reasons
from rlhf_hw.data.template import answer_text, earlier_answer_spans, is_templated, prompt_text
from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
Batch = dict[str, list[Any]]
Side = Literal["chosen", "rejected"]

TOKEN_IDS = [Value("int32")]  # a list of them; int32 holds every vocabulary and halves the cache
SFT_FEATURES = Features({"input_ids": TOKEN_IDS, "loss_mask": [Value("int8")]})
REWARD_FEATURES = Features({"chosen_input_ids": TOKEN_IDS, "rejected_input_ids": TOKEN_IDS})
PROMPT_FEATURES = Features(
    {
        "input_ids": TOKEN_IDS,
        "prompt": Value("string"),
        "canonical_prompt": Value("string"),
        "prompt_is_chat": Value("bool"),
        "chosen": Value("string"),
        "source": Value("string"),
    }
)
# What was found on the way, kept in the cache beside each row so that a cached run reports the same.
_FINDINGS = Features(
    {
        "dropped": Value("string"),
        "truncated": Value("bool"),
        "length": Value("int32"),
        "target_tokens": Value("int32"),
        "turns_not_found": Value("int32"),
    }
)


class Tokenized(NamedTuple):
    dataset: Dataset
    report: TokenReport


# --- the three purposes ----------------------------------------------------------------------------------------


def for_sft(
    dataset: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    train_on_inputs: bool = False,
    num_proc: int | None = None,
) -> Tokenized:
    """Columns `input_ids`, `loss_mask` (1 where the token is a target): prompt + answer + EOS.

    Targets are the answer and its EOS; with `train_on_inputs` the prompt as well; with an example's
    `learn_all_turns` the assistant's earlier turns too. The first token follows nothing, so it never is one.
    A longer row is cut at `max_length` (and then has no EOS); a row left without targets is dropped.
    """

    def tokenize(batch: Batch) -> Batch:
        out = _Rows(SFT_FEATURES)
        for row in _encode(batch, tokenizer, ("chosen",), want_turns=True):
            ids, answer_mask = row.prompt + row.answers[0], [1] * len(row.answers[0])
            mask = [1] * len(ids) if train_on_inputs else row.turn_mask + answer_mask
            truncated = len(ids) > max_length
            ids, mask = ids[:max_length], [0, *mask[1:max_length]]
            if row.refusal:
                out.drop(row.refusal)
            elif not any(mask):
                out.drop("nothing to learn: the prompt fills max_length" if truncated else "nothing to learn")
            else:
                out.keep(
                    {"input_ids": ids, "loss_mask": mask},
                    length=len(ids),
                    truncated=truncated,
                    target_tokens=sum(mask),
                    turns_not_found=row.turns_not_found,
                )
        return out.columns

    _require_eos(tokenizer)
    options = (max_length, train_on_inputs)
    return _map(dataset, tokenizer, tokenize, SFT_FEATURES, "sft", options, num_proc)


def for_reward(
    dataset: Dataset, tokenizer: "PreTrainedTokenizerBase", *, max_length: int, num_proc: int | None = None
) -> Tokenized:
    """Columns `chosen_input_ids`, `rejected_input_ids`: prompt + answer + EOS of each side.

    A pair of which either side is longer than `max_length` is dropped: cut answers are not what was judged.
    """

    def tokenize(batch: Batch) -> Batch:
        out = _Rows(REWARD_FEATURES)
        for row in _encode(batch, tokenizer, ("chosen", "rejected")):
            chosen, rejected = (row.prompt + answer for answer in row.answers)
            length = max(len(chosen), len(rejected))
            if row.refusal:
                out.drop(row.refusal)
            elif length > max_length:
                out.drop("a side is longer than max_length")
            elif chosen == rejected:
                out.drop("both sides have the same tokens")
            else:
                out.keep({"chosen_input_ids": chosen, "rejected_input_ids": rejected}, length=length)
        return out.columns

    _require_eos(tokenizer)
    return _map(dataset, tokenizer, tokenize, REWARD_FEATURES, "reward", (max_length,), num_proc)


def for_prompts(
    dataset: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_prompt_length: int,
    truncate: Literal["drop", "left"] = "drop",
    num_proc: int | None = None,
) -> Tokenized:
    """Columns `input_ids` (the prompt), `prompt` (its text), `chosen` (a reference answer or None), `source`.

    And `canonical_prompt`, `prompt_is_chat`: the prompt before any template, for a reward model that has another
    tokenizer and template (`answered`).

    A prompt longer than `max_prompt_length` is dropped, or with `truncate="left"` keeps its end (and its
    beginning-of-sequence token); `prompt` is then the text that was kept.
    """

    def tokenize(batch: Batch) -> Batch:
        out = _Rows(PROMPT_FEATURES)
        for row in _encode(batch, tokenizer, ()):
            ids, text, truncated = row.prompt, row.prompt_text, len(row.prompt) > max_prompt_length
            if row.refusal:
                out.drop(row.refusal)
            elif not ids:
                out.drop("the prompt is empty")
            elif truncated and truncate == "drop":
                out.drop("the prompt is longer than max_prompt_length")
            else:
                if truncated:
                    end = ids[len(ids) - max_prompt_length + row.prefix_length :]
                    ids, text = ids[: row.prefix_length] + end, tokenizer.decode(end)
                example = row.example
                columns = {
                    "input_ids": ids,
                    "prompt": text,
                    "canonical_prompt": text if truncated else to_row(example)["prompt"],
                    "prompt_is_chat": not truncated and not isinstance(example.prompt, str),
                    "chosen": example.chosen,
                    "source": example.source,
                }
                out.keep(columns, length=len(ids), truncated=truncated)
        return out.columns

    options = (max_prompt_length, truncate)
    return _map(dataset, tokenizer, tokenize, PROMPT_FEATURES, "prompts", options, num_proc)


def answered(
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[str],
    ended: Sequence[bool],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Ids]:
    """Ids of prompts (rows of `for_prompts`) with their answers as `tokenizer` has them: as in `for_reward`.

    An answer that `ended` closes as learnt answers do (the template's end of turn, EOS); another one stays open.

    Raises:
        UserError: the tokenizer's chat template refuses a conversation.
    """
    batch: Batch = {name: [] for name in CANONICAL_FEATURES}
    for row, answer in zip(rows, answers, strict=True):
        chat = row[
            "prompt_is_chat"
        ]  # a decoded answer keeps the space that a chat's rendering writes of itself
        columns = {"prompt": row["canonical_prompt"], "prompt_is_chat": chat, "source": row["source"]}
        columns |= {"chosen": answer.strip() if chat else answer, "rejected": None, "learn_all_turns": False}
        for name, column in batch.items():
            column.append(columns[name])
    sequences = []
    for encoded, is_over in zip(_encode(batch, tokenizer, ("chosen",)), ended, strict=True):
        if encoded.refusal:
            raise UserError(f"--reward_model_name: {encoded.refusal}")
        answer_ids = encoded.answers[0] if is_over else _open_answer_ids(encoded, tokenizer)
        sequences.append(encoded.prompt + answer_ids)
    return sequences


def _open_answer_ids(row: "_Encoded", tokenizer: "PreTrainedTokenizerBase") -> Ids:
    """Ids of an answer that was cut off: its text with nothing behind it."""
    text = answer_text(row.example.prompt, row.example.chosen or "", tokenizer)
    said = row.example.chosen or ""
    lead = text[: text.rfind(said)] if said else ""
    return tokenizer(lead + said, add_special_tokens=False)["input_ids"]


# --- ids -------------------------------------------------------------------------------------------------------


class _Encoded(NamedTuple):
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
    """The tokens this tokenizer puts before a text of itself (BOS, or none); those it puts after are not wanted."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(start for start in range(len(full)) if full[start : start + len(bare)] == bare)
    return list(full[:start])


def _require_eos(tokenizer: "PreTrainedTokenizerBase") -> None:
    if tokenizer.eos_token_id is None:
        raise UserError(
            "--tokenizer_name: the tokenizer has no EOS token, so no answer could end; set eos_token"
        )


def _encode(
    batch: Batch,
    tokenizer: "PreTrainedTokenizerBase",
    sides: tuple[Side, ...],
    *,
    want_turns: bool = False,
) -> Iterator[_Encoded]:
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
        yield _Encoded(
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
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
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


# --- mapping, caching, reporting -------------------------------------------------------------------------------


class _Rows:
    """The output columns of a batch, a verdict beside each row."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self.columns: Batch = {name: [] for name in (*features, *_FINDINGS)}

    def keep(
        self,
        row: dict[str, Any],
        *,
        length: int,
        truncated: bool = False,
        target_tokens: int = 0,
        turns_not_found: int = 0,
    ) -> None:
        found = {"length": length, "target_tokens": target_tokens, "turns_not_found": turns_not_found}
        self._add({**row, **found, "dropped": "", "truncated": truncated})

    def drop(self, reason: str) -> None:
        empty: dict[str, Any] = {
            name: None if isinstance(kind, Value) else [] for name, kind in self._features.items()
        }
        nothing = {"length": 0, "target_tokens": 0, "turns_not_found": 0, "truncated": False}
        self._add({**empty, **nothing, "dropped": reason})

    def _add(self, row: dict[str, Any]) -> None:
        for name, column in self.columns.items():
            column.append(row[name])


def _map(
    dataset: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    tokenize: Callable[[Batch], Batch],
    features: Features,
    purpose: str,
    options: tuple[object, ...],
    num_proc: int | None,
) -> Tokenized:
    """`tokenize` over the data set, from the cache where it has run before; then the dropped rows are left out."""
    fingerprint = fingerprint_of_values(
        dataset._fingerprint, fingerprint_of_tokenizer(tokenizer), purpose, options, fingerprint_of_code()
    )
    everything = dataset.map(
        tokenize,
        batched=True,
        remove_columns=dataset.column_names,
        features=Features({**features, **_FINDINGS}),
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        new_fingerprint=fingerprint,
        desc=f"Tokenizing for {purpose}",
    )
    reasons = list(everything["dropped"])
    dropped = count_reasons(reasons)
    kept = [index for index, reason in enumerate(reasons) if not reason]
    if not kept:
        faults = (
            "; ".join(f"{reason}: {count} rows" for reason, count in dropped.items()) or "there were none"
        )
        raise UserError(f"no row is left after tokenization for {purpose}: {faults}")
    usable = everything.select(kept, new_fingerprint=fingerprint_of_values(fingerprint, "kept"))
    report = TokenReport(
        rows=len(everything),
        kept=len(kept),
        dropped=dropped,
        truncated=sum(usable["truncated"]),
        lengths=LengthStatistics.of(list(usable["length"])),
        target_tokens=sum(usable["target_tokens"]),
        turns_not_found=sum(usable["turns_not_found"]),
    )
    rows = usable.remove_columns(list(_FINDINGS), new_fingerprint=fingerprint_of_values(fingerprint, "rows"))
    return Tokenized(rows, report)
