"""Raw rows → a canonical data set in the cache, with a verdict on every row."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from rlhf_hw.data.cached import cached_rows
from rlhf_hw.data.example import CANONICAL_FEATURES, Example, Message, Purpose, to_row
from rlhf_hw.data.fingerprint import fingerprint_of_code, fingerprint_of_values
from rlhf_hw.data.formats import Format, MalformedRow, detect
from rlhf_hw.data.report import FileReport, count_rows
from rlhf_hw.data.rows import RowSource
from rlhf_hw.data.splits import take
from rlhf_hw.errors import UserError

# The verdict travels in the cached data set beside the rows, so that the report is the same whether the rows
# were converted now or by an earlier run.
_VERDICT_FEATURES = Features({"malformed": Value("string"), "dropped": Value("string")})
_NOTHING = to_row(Example("", None))


@dataclass
class Converted:
    """All rows of a source as canonical ones, which of them are usable, and the report on them."""

    everything: Dataset
    is_usable: np.ndarray
    row_format: Format
    report: FileReport

    def usable(self, which: np.ndarray | None = None) -> Dataset:
        """The usable rows in canonical columns; of the rows with these numbers, in their order, where given."""
        indices = np.flatnonzero(self.is_usable) if which is None else which[self.is_usable[which]]
        dataset = take(self.everything, indices)
        return dataset.remove_columns(
            list(_VERDICT_FEATURES), new_fingerprint=fingerprint_of_values(dataset._fingerprint, "canonical")
        )


def convert_rows(
    rows: RowSource,
    *,
    purpose: Purpose,
    row_format: Format,
    task: str,
    max_malformed_fraction: float,
    cache_dir: str | None,
    keep_in_memory: bool = False,
) -> Converted:
    """The rows in canonical columns, and the report on all of them.

    Raises `UserError` when more than `max_malformed_fraction` of the rows are malformed, or none is usable.
    """
    fingerprint = fingerprint_of_values(
        rows.fingerprint, row_format.name, row_format.content, purpose, task, fingerprint_of_code()
    )
    everything = cached_rows(
        _judged_rows,
        Features({**CANONICAL_FEATURES, **_VERDICT_FEATURES}),
        fingerprint,
        cache_dir=cache_dir,
        keep_in_memory=keep_in_memory,
        rows=rows,
        row_format=row_format,
        purpose=purpose,
        task=task,
    )
    malformed, dropped = list(everything["malformed"]), list(everything["dropped"])
    report = FileReport(
        rows.label, row_format.name, len(everything), count_rows(malformed), count_rows(dropped)
    )
    _refuse_if_unfit(report, purpose, max_malformed_fraction)
    is_usable = np.array([not fault and not reason for fault, reason in zip(malformed, dropped, strict=True)])
    return Converted(everything, is_usable, row_format, report)


def format_of(
    rows: RowSource, formats: Sequence[Format], set_name: str, likely: Format | None = None
) -> Format:
    """The format of these rows, told by their columns, and by the set's name where columns cannot tell.

    `likely`, the format of the same set's other rows, is theirs too where the columns fit it.
    """
    first_row = next((row for row in rows.read() if isinstance(row, dict)), None)
    if first_row is None:
        raise UserError(f"{rows.label}: holds no rows that are objects with named columns")
    columns = [column for column in first_row if column is not None]
    if likely is not None and likely.matches(columns, first_row):
        return likely
    return detect(columns, first_row, formats, set_name)


def _judged_rows(
    rows: RowSource, row_format: Format, purpose: Purpose, task: str
) -> Iterator[dict[str, Any]]:
    for row in row_format.gather(rows.read()):
        try:
            example = _with_margin(_convert_row(row, row_format, task), row)
            canonical = to_row(example)
            _check_encodable(canonical)
        except MalformedRow as fault:
            yield {**_NOTHING, "malformed": str(fault), "dropped": ""}
        else:
            yield {**canonical, "malformed": "", "dropped": _unfit_for(example, purpose)}


def _check_encodable(canonical: dict[str, Any]) -> None:
    """JSON may carry half of a surrogate pair ("\\ud83d"), which is no character and fits no UTF-8 column."""
    try:
        for text in canonical.values():
            if isinstance(text, str):
                text.encode()
    except UnicodeEncodeError as error:
        raise MalformedRow("the text holds half of a surrogate pair") from error


def _convert_row(row: Any, row_format: Format, task: str) -> Example:
    if not isinstance(row, dict):
        raise MalformedRow(f"the row is {type(row).__name__}, not an object")
    if None in row:
        raise MalformedRow("the row has more fields than the header has names")
    example = row_format.convert(row)
    if task != "chat" or not isinstance(example.prompt, str) or not example.prompt:
        return example
    messages = row_format.chat_prompt(row) if row_format.chat_prompt else (Message("user", example.prompt),)
    # a text's answer begins with the space that separates it from the prompt; a chat template writes its own
    answers = [answer and answer.removeprefix(" ") for answer in (example.chosen, example.rejected)]
    return replace(example, prompt=messages, chosen=answers[0], rejected=answers[1])


def _with_margin(example: Example, row: dict[str, Any]) -> Example:
    """The example with the number in a `margin` column, which a pair of any format may have."""
    if example.rejected is None or row.get("margin") in (None, ""):
        return example
    try:
        margin = float(row["margin"])
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise MalformedRow("margin is not a number")
    return replace(example, margin=margin)


def _unfit_for(example: Example, purpose: Purpose) -> str:
    """Why a sound row is of no use for this purpose; "" if it is."""
    if purpose == "ppo":
        return "" if example.prompt else "the prompt is empty"
    if example.chosen is None:
        return "there is no answer to learn from"
    if purpose == "reward" and example.rejected is None:
        return "there is no rejected answer"
    if purpose == "reward" and example.chosen == example.rejected:
        return "chosen and rejected are the same text"
    return ""


def _refuse_if_unfit(report: FileReport, purpose: Purpose, max_malformed_fraction: float) -> None:
    if not report.read:
        raise UserError(f"{report.label}: holds no rows")
    if report.malformed_count > max_malformed_fraction * report.read:
        faults = "; ".join(f"{reason}: {rows}" for reason, rows in report.malformed.items())
        raise UserError(
            f"{report.label}: {report.malformed_count} of {report.read} rows are malformed as {report.format} "
            f"({report.malformed_count / report.read:.1%}, allowed {max_malformed_fraction:.1%}): {faults}; "
            "mend the data, or raise --max_malformed_fraction"
        )
    if not report.usable:
        faults = "; ".join(
            f"{reason}: {rows}" for reason, rows in (report.dropped or report.malformed).items()
        )
        raise UserError(f"{report.label}: no row of format {report.format} is usable for {purpose}: {faults}")
