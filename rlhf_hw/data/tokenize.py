"""Canonical examples → data sets of token ids for each stage, with the loss mask; `rlhf_hw.data.encode` makes the ids.

Each function returns `Tokenized(dataset, report)`. Results are cached beside the data set they are made from
(`rlhf_hw.data.fingerprint` says under which name), and made by `num_proc` processes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datasets import Dataset, Features, Value

from rlhf_hw.data.encode import Batch, Ids, encode, open_answer_ids
from rlhf_hw.data.example import CANONICAL_FEATURES, to_row
from rlhf_hw.data.fingerprint import fingerprint_of_code, fingerprint_of_tokenizer, fingerprint_of_values
from rlhf_hw.data.report import LengthStatistics, TokenReport, count_reasons
from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_IDS = [Value("int32")]  # a list of them; int32 holds every vocabulary and halves the cache
SFT_FEATURES = Features({"input_ids": TOKEN_IDS, "loss_mask": [Value("int8")]})
REWARD_FEATURES = Features(
    {"chosen_input_ids": TOKEN_IDS, "rejected_input_ids": TOKEN_IDS, "margin": Value("float32")}
)
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
    truncate: Literal["right", "left"] = "right",
    num_proc: int | None = None,
) -> Tokenized:
    """Columns `input_ids`, `loss_mask` (1 where the token is a target): prompt + answer + EOS.

    Targets are the answer and its EOS; with `train_on_inputs` the prompt as well; with an example's
    `learn_all_turns` the assistant's earlier turns too. The first token follows nothing, so it never is one.
    A longer row is cut at `max_length` (and then has no EOS), or with `truncate="left"` keeps its end (and its
    beginning-of-sequence token); a row left without targets is dropped.
    """

    def tokenize(batch: Batch) -> Batch:
        out = _Rows(SFT_FEATURES)
        for row in encode(batch, tokenizer, ("chosen",), want_turns=True):
            ids, answer_mask = row.prompt + row.answers[0], [1] * len(row.answers[0])
            mask = [1] * len(ids) if train_on_inputs else row.turn_mask + answer_mask
            truncated = len(ids) > max_length
            if truncated and truncate == "left":
                begin = len(ids) - max_length + row.prefix_length
                # the first token that is kept stands behind others than it was written behind: no target either
                ids, mask = (
                    ids[: row.prefix_length] + ids[begin:],
                    [0] * row.prefix_length + [0, *mask[begin + 1 :]],
                )
            else:
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
    options = (max_length, train_on_inputs, truncate)
    return _map(dataset, tokenizer, tokenize, SFT_FEATURES, "sft", options, num_proc)


def for_reward(
    dataset: Dataset, tokenizer: "PreTrainedTokenizerBase", *, max_length: int, num_proc: int | None = None
) -> Tokenized:
    """Columns `chosen_input_ids`, `rejected_input_ids`: prompt + answer + EOS of each side; `margin`: as the set has it.

    A pair of which either side is longer than `max_length` is dropped: cut answers are not what was judged.
    """

    def tokenize(batch: Batch) -> Batch:
        out = _Rows(REWARD_FEATURES)
        for row in encode(batch, tokenizer, ("chosen", "rejected")):
            chosen, rejected = (row.prompt + answer for answer in row.answers)
            length = max(len(chosen), len(rejected))
            if row.refusal:
                out.drop(row.refusal)
            elif length > max_length:
                out.drop("a side is longer than max_length")
            elif chosen == rejected:
                out.drop("both sides have the same tokens")
            else:
                pair = {"chosen_input_ids": chosen, "rejected_input_ids": rejected}
                out.keep({**pair, "margin": row.example.margin}, length=length)
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
        for row in encode(batch, tokenizer, ()):
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
        columns |= {"chosen": answer.strip() if chat else answer, "rejected": None}
        columns |= {"learn_all_turns": False, "margin": None}
        for name, column in batch.items():
            column.append(columns[name])
    sequences = []
    for encoded, is_over in zip(encode(batch, tokenizer, ("chosen",)), ended, strict=True):
        if encoded.refusal:
            raise UserError(f"--reward_model_name: {encoded.refusal}")
        answer_ids = encoded.answers[0] if is_over else open_answer_ids(encoded, tokenizer)
        sequences.append(encoded.prompt + answer_ids)
    return sequences


def _require_eos(tokenizer: "PreTrainedTokenizerBase") -> None:
    if tokenizer.eos_token_id is None:
        raise UserError(
            "--tokenizer_name: the tokenizer has no EOS token, so no answer could end; set eos_token"
        )


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
