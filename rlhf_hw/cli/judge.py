"""`rlhf-hw judge` and `run_eval.py`: the win rate of answers against reference answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_hw.arguments.evaluation import JudgeArguments, parse_judge
from rlhf_hw.cli.entry import command
from rlhf_hw.errors import UserError
from rlhf_hw.evaluation.asked import Place
from rlhf_hw.evaluation.endpoint import Endpoint
from rlhf_hw.evaluation.instructions import example_of, read_instructions, source_of
from rlhf_hw.evaluation.journal import Journal, check_output, fingerprint
from rlhf_hw.evaluation.judge import EndpointJudge, Judge, Pair, RewardModelJudge
from rlhf_hw.evaluation.scoring import AnswerScorer
from rlhf_hw.evaluation.win_rate import WinRate, by_source, preference
from rlhf_hw.models.fingerprint import model_fingerprint
from rlhf_hw.models.load import check_model_path, check_reward_model
from rlhf_hw.run_files import as_json, write_atomically
from rlhf_hw.secrets import SecretVault, install_log_filter

FLAG = "--output_path"
#: flags that act with one kind of judge only
OF_ENDPOINTS = {"judge_model", "api_key_variable", "concurrency", "timeout", "retries"}
OF_REWARD_MODELS = {"batch_size", "chat", "device", "torch_dtype"}


@command("judge")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read, judge what is not judged yet, write rows and summary, say the win rate."""
    tool = parse_judge(argv)
    settings = tool.settings
    secrets = [*settings.secret_values(), os.environ.get(settings.api_key_variable, "")]
    install_log_filter(SecretVault(value for value in secrets if value))
    rows = read_instructions(settings.input_path, "--input_path")[: settings.max_samples]
    pairs = pairs_of(settings, rows)
    check_output(settings.output_path, overwrite=settings.overwrite, flag=FLAG)
    who = check_judge(settings)
    by_model = settings.reward_model is not None
    for name in sorted((OF_ENDPOINTS if by_model else OF_REWARD_MODELS) & tool.given):
        print(f"--{name}: without effect, {who} judges")
    if tool.dry_run:
        print(f"dry run: {who} would judge {len(rows)} pairs of answers into {settings.output_path}")
        return 0
    with Journal(
        settings.output_path, depends_on(settings, pairs, who), overwrite=settings.overwrite, flag=FLAG
    ) as journal:
        if journal.results:
            print(f"{len(journal.results)} of {len(rows)} are judged already; going on")
        left = {row: pair for row, pair in enumerate(pairs) if row not in journal.results}
        if left:
            for row, verdicts, further in judge_of(settings).verdicts(left):
                names = [verdict.value for verdict in verdicts]
                journal.add(row, {"preference": preference(verdicts), "verdicts": names, **further})
                if len(journal.results) % 20 == 0:
                    print(f"{len(journal.results)} of {len(rows)}", flush=True)
        judged = [
            {**row, **answers_of(pair), **journal.results[i]}
            for i, (row, pair) in enumerate(zip(rows, pairs, strict=True))
        ]
        summary = write_summary(settings.output_path, judged, who)
        journal.finish(judged)
    print(f"wrote {settings.output_path} and {summary}")
    return 0


def pairs_of(settings: JudgeArguments, rows: list[dict[str, Any]]) -> list[Pair]:
    """The two answers of each row.

    Raises:
        UserError: a column is missing, or the two files do not go together; names file and row.
    """
    others: list[dict[str, Any]] = rows
    if settings.reference_path is not None:
        others = read_instructions(settings.reference_path, "--reference_path")[: settings.max_samples]
        if len(others) != len(rows):
            raise UserError(
                f"--reference_path: {settings.reference_path} has {len(others)} rows, {settings.input_path} {len(rows)}; "
                "they must answer the same instructions in the same order"
            )
    pairs = []
    for number, (row, other) in enumerate(zip(rows, others, strict=True), start=1):
        one_file = settings.reference_path is None
        reference_column = settings.reference_column if one_file else settings.answer_column
        reference_file = settings.input_path if one_file else str(settings.reference_path)
        example = example_of(row, chat=settings.chat)
        if example_of(other, chat=settings.chat).prompt != example.prompt:
            raise UserError(
                f"--reference_path: {reference_file}, row {number}: not the same instruction as in the other file"
            )
        reference = column(other, reference_column, reference_file, number, with_output=not one_file)
        answer = column(row, settings.answer_column, settings.input_path, number, with_output=True)
        pairs.append(Pair(request_of(row), example, reference, answer))
    return pairs


def column(row: dict[str, Any], name: str, file: str, number: int, *, with_output: bool) -> str:
    """The text under `name`; where there is none and `with_output`, that under `output`. An answer may be empty."""
    if row.get(name) is None and with_output:
        name = "output"
    text = row.get(name)
    if not isinstance(text, str):
        found = "no such column" if text is None else f"{type(text).__name__}, not text"
        raise UserError(
            f"{file}, row {number}: {name}: {found}; the columns are {', '.join(row)}: say which hold the answers with "
            "--reference_column, --answer_column or --reference_path"
        )
    return text


def request_of(row: dict[str, Any]) -> str:
    """What was asked, as a person reads it."""
    if row.get("prompt") is not None:
        return str(row["prompt"])
    return "\n\n".join(part for part in (row["instruction"], row.get("input") or "") if part.strip())


def check_judge(settings: JudgeArguments) -> str:
    """Who judges; refused where that can be told before anything is asked."""
    name = settings.reward_model
    if name is not None:
        check_model_path(name, "--reward_model")
        check_reward_model(name, "--reward_model")
        return f"reward model {name}"
    endpoint = endpoint_of(settings)
    return f"{endpoint.model} at {endpoint.shown_url}"


def endpoint_of(settings: JudgeArguments) -> Endpoint:
    """The endpoint with its key."""
    return Endpoint.from_environment(
        settings.judge_url,
        settings.judge_model,
        settings.api_key_variable,
        timeout=settings.timeout,
        retries=settings.retries,
    )


def judge_of(settings: JudgeArguments) -> Judge:
    """The judge that the flags name, loaded."""
    if settings.reward_model is None:
        return EndpointJudge(endpoint_of(settings), settings.concurrency)
    place = Place.of(settings)
    model, tokenizer = place.reward_model(settings.reward_model, "--reward_model")
    scorer = AnswerScorer(model, tokenizer, place.backend, settings.batch_size)
    return RewardModelJudge(scorer, settings.batch_size)


def depends_on(settings: JudgeArguments, pairs: list[Pair], who: str) -> dict[str, Any]:
    """What the verdicts depend on: a killed run is continued with the same only."""
    found: dict[str, Any] = {
        "answers": fingerprint([[p.request, p.reference, p.answer] for p in pairs]),
        "judge": who,
        "rows": len(pairs),
    }
    if settings.reward_model is not None:
        found |= {"chat": settings.chat, "torch_dtype": settings.torch_dtype}
        found["the model's files"] = model_fingerprint(settings.reward_model)
    return found


def answers_of(pair: Pair) -> dict[str, str]:
    """The two answers under the names that AlpacaFarm gives them."""
    return {"output_1": pair.reference, "output_2": pair.answer}


def write_summary(output: str, judged: list[dict[str, Any]], who: str) -> Path:
    """Say the win rate, and write it beside the output: OUTPUT.summary.json."""
    rate = WinRate.of(row["preference"] for row in judged)
    parts = by_source(judged, [source_of(row) for row in judged])
    print(f"win rate {rate.line()}, judged by {who}")
    for name, part in parts.items():
        print(f"  {name}: {part.line()}")
    path = Path(output).with_suffix(".summary.json")
    summary = {
        "judge": who,
        "win_rate": rate.as_dict(),
        "by_source": {name: part.as_dict() for name, part in parts.items()},
    }
    write_atomically(path, as_json(summary))
    return path


if __name__ == "__main__":
    sys.exit(main())
