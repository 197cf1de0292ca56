"""Raw rows → a canonical data set in the cache, with a verdict on every row."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from datasets import Dataset, Features, Value

from rlhf_hw.data.cached import cached_rows
from rlhf_hw.data.example import CANONICAL_FEATURES, Example, Message, Purpose, to_row
from rlhf_hw.data.fingerprint import fingerprint_of_code, fingerprint_of_values
from rlhf_hw.data.formats import Format, MalformedRow, detect, format_named
from rlhf_hw.data.report import FileReport, count_rows
from rlhf_hw.data.rows import RowSource
from rlhf_hw.errors import UserError

# The verdict travels in the cached data set beside the rows, so that the report is the same whether the rows
# were converted now or by an earlier run.
_VERDICT_FEATURES = Features({"malformed": Value("string"), "dropped": Value("string")})
_NOTHING = to_row(Example("", None))


def convert_rows(
    rows: RowSource,
    *,
    purpose: Purpose,
    data_format: str | None,
    task: str,
    max_malformed_fraction: float,
    cache_dir: str | None,
    keep_in_memory: bool = False,
) -> tuple[Dataset, FileReport]:
    """The usable rows in canonical columns, and the report on all of them.

    Raises `UserError` when more than `max_malformed_fraction` of the rows are malformed, or none is usable.
    """
    row_format = format_named(data_format) if data_format else _detect_format(rows)
    fingerprint = fingerprint_of_values(
        rows.fingerprint, row_format.name, purpose, task, fingerprint_of_code()
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
    usable = [index for index in range(len(everything)) if not malformed[index] and not dropped[index]]
    dataset = everything.select(usable, new_fingerprint=fingerprint_of_values(fingerprint, "usable"))
    canonical = dataset.remove_columns(
        list(_VERDICT_FEATURES), new_fingerprint=fingerprint_of_values(fingerprint, "canonical")
    )
    return canonical, report


def _detect_format(rows: RowSource) -> Format:
    first_row = next((row for row in rows.read() if isinstance(row, dict)), None)
    if first_row is None:
        raise UserError(f"{rows.label}: holds no rows that are objects with named columns")
    return detect([column for column in first_row if column is not None], first_row)


def _judged_rows(
    rows: RowSource, row_format: Format, purpose: Purpose, task: str
) -> Iterator[dict[str, Any]]:
    for row in rows.read():
        try:
            example = _convert_row(row, row_format, task)
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
    if row_format.chat_prompt is not None:
        return replace(example, prompt=row_format.chat_prompt(row))
    return replace(example, prompt=(Message("user", example.prompt),))


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
