"""Win rates: by a chat model behind an endpoint that sometimes fails, and by a reward model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import judge_server
from run_results import write_rows

from rlhf_hw.arguments.evaluation import JudgeArguments, parse_judge
from rlhf_hw.cli.judge import depends_on
from rlhf_hw.evaluation import endpoint as endpoint_module
from rlhf_hw.evaluation.judge import EndpointJudge, read_verdict
from rlhf_hw.evaluation.win_rate import Verdict, WinRate, preference

Run = Callable[..., Any]
KEY = "sk-secret-of-the-test"


@pytest.fixture(autouse=True)
def _quick_and_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint_module.Endpoint, "first_wait", 0.01)
    monkeypatch.setattr(endpoint_module, "LONGEST_WAIT", 0.05)


@pytest.fixture
def answers(workplace: Path) -> Path:
    """Six rows: by length the answer wins three, ties one and loses two."""
    texts = [("a", "aaa"), ("a", "aa"), ("aa", "bb"), ("aaaa", "a"), ("a", "aaaaaa"), ("aa", "a")]
    rows = [
        {
            "instruction": f"Question {i}",
            "input": "",
            "output_1": one,
            "output_2": two,
            "dataset": "uv"[i % 2],
        }
        for i, (one, two) in enumerate(texts)
    ]
    return write_rows(workplace / "answers.jsonl", rows)


def judged(run: Run, answers: Path, url: str, *more: object) -> Any:
    return run(
        *(
            "judge",
            "--input-path",
            answers,
            "--output-path",
            "judged.json",
            "--judge_url",
            url,
            "--timeout",
            0.5,
            *more,
        )
    )


def test_the_win_rate_survives_every_passing_failure_and_the_key_is_written_nowhere(
    run: Run, answers: Path, workplace: Path
) -> None:
    faults = ("500", "429", "not json", "no choices", "no text", "hangs", "cut off", "500")
    with judge_server(faults=faults) as (url, log):
        outcome = judged(run, answers, url)
    assert outcome.status == 0, outcome.err
    rows = json.loads(Path("judged.json").read_text())
    assert [row["preference"] for row in rows] == [2, 2, 1.5, 1, 2, 1]
    assert [row["verdicts"] for row in rows][:3] == [["answer"] * 2, ["answer"] * 2, ["tie"] * 2]
    assert len(log.requests) == 2 * 6 + len(faults)
    assert "win rate 58.3% (95% interval 24.1%–86.1%; 3 wins, 1 ties counted half, 2 losses)" in outcome.out
    summary = json.loads(Path("judged.summary.json").read_text())
    assert summary["win_rate"]["rate"] == pytest.approx(3.5 / 6)
    assert summary["by_source"]["u"]["rate"] == pytest.approx(2.5 / 3)
    assert set(log.keys) == {f"Bearer {KEY}"}
    written = "".join(path.read_text() for path in workplace.rglob("*") if path.is_file())
    assert KEY not in written + outcome.out + outcome.err


def test_a_judge_that_always_names_the_first_prefers_nobody(run: Run, answers: Path) -> None:
    with judge_server(lambda first, second: "FIRST") as (url, _):
        assert judged(run, answers, url).status == 0
    rows = json.loads(Path("judged.json").read_text())
    assert [row["preference"] for row in rows] == [1.5] * 6
    assert json.loads(Path("judged.summary.json").read_text())["win_rate"]["rate"] == 0.5


def test_an_endpoint_that_goes_away_leaves_its_verdicts_and_the_next_run_asks_for_the_rest(
    run: Run, answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judge_server() as (url, log):
        port = int(url.split(":")[2].split("/")[0])
        served: list[int] = []
        both = EndpointJudge._both_orders

        def breaks_down(judge: EndpointJudge, pair: Any) -> list[Verdict]:
            served.append(1)
            if len(served) > 2:
                judge.endpoint.url = "http://127.0.0.1:9/v1"
            return both(judge, pair)

        monkeypatch.setattr(EndpointJudge, "_both_orders", breaks_down)
        outcome = judged(run, answers, url, "--concurrency", 1, "--retries", 1)
        assert outcome.status == 2
        assert "did not answer in 2 tries" in outcome.err
        assert not Path("judged.json").exists()
        monkeypatch.setattr(EndpointJudge, "_both_orders", both)
        before = len(log.requests)
        outcome = judged(run, answers, f"http://127.0.0.1:{port}/v1")
        assert outcome.status == 0, outcome.err
        assert "2 of 6 are judged already" in outcome.out
        assert len(log.requests) - before == 2 * 4
    rows = json.loads(Path("judged.json").read_text())
    assert [row["preference"] for row in rows] == [2, 2, 1.5, 1, 2, 1]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("401", "check the key in the environment"),
        ("404", "--judge_model gpt-4.1-mini"),
        ("redirect", "refuses: HTTP 307"),
    ],
)
def test_a_refusal_is_one_line_at_once(fault: str, said: str, run: Run, answers: Path) -> None:
    with judge_server(always=fault) as (url, log):
        outcome = judged(run, answers, url, "--concurrency", 1)
    assert outcome.status == 2
    assert len(log.requests) == 1
    assert len(outcome.err.splitlines()) == 1
    assert said in outcome.err
    assert KEY not in outcome.err


def test_a_model_that_takes_no_temperature_is_asked_without(run: Run, answers: Path) -> None:
    with judge_server(always="no temperature") as (url, log):
        assert judged(run, answers, url, "--concurrency", 1).status == 0
    assert sum("temperature" in request for request in log.requests) == 1


def test_a_judge_that_never_decides_is_unclear_and_left_out(run: Run, answers: Path) -> None:
    def shy(first: str, second: str) -> str:
        return (
            "I cannot say" if len(first + second) > 4 else "FIRST" if len(first) > len(second) else "SECOND"
        )

    with judge_server(shy) as (url, _):
        outcome = judged(run, answers, url)
    assert "2 unclear and left out" in outcome.out
    rows = json.loads(Path("judged.json").read_text())
    assert [row["preference"] for row in rows] == [2, 2, 1.5, None, None, 1]


def test_two_files_with_outputs_are_compared_row_by_row(run: Run, workplace: Path) -> None:
    questions = [{"instruction": "A?", "input": ""}, {"instruction": "B?", "input": ""}]
    for name, texts in (("old", ("a", "bb")), ("new", ("aa", ""))):
        rows = [{**q, "output": text, "generator": name} for q, text in zip(questions, texts, strict=True)]
        write_rows(workplace / f"{name}.jsonl", rows)
    with judge_server() as (url, _):
        assert judged(run, Path("new.jsonl"), url, "--reference_path", "old.jsonl").status == 0
    rows = json.loads(Path("judged.json").read_text())
    assert [(row["output_1"], row["output_2"], row["preference"]) for row in rows] == [
        ("a", "aa", 2),
        ("bb", "", 1),
    ]
    write_rows(workplace / "old.jsonl", [*reversed(questions)])
    outcome = judged(run, Path("new.jsonl"), "http://x/v1", "--reference_path", "old.jsonl", "--overwrite")
    assert "old.jsonl, row 1: not the same instruction" in outcome.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--judge_url", "ftp://x"], "--judge_url: ftp://x is no http(s) URL"),
        (["--api_key_variable", "sk-1 2"], "--api_key_variable: expected the name of a variable"),
        (["--api_key_variable", "NOT_SET"], "NOT_SET, which is not set"),
        (["--answer_column", "nothing", "--reference_column", "none"], "row 1: none: no such column"),
        (["--reward_model", "./nowhere"], "--reward_model: there is no directory ./nowhere"),
        (["--concurrency", "0"], "--concurrency: got 0"),
    ],
)
def test_bad_input_is_one_line(more: list[str], said: str, run: Run, answers: Path) -> None:
    outcome = run("judge", "--input_path", answers, "--output_path", "j.json", *more)
    assert outcome.status == 2
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("j.json.partial.jsonl").exists()


def test_a_reward_model_judges_by_its_scores(
    run: Run, trained: Callable[..., Path], reward_flags: list[object], answers: Path
) -> None:
    model = trained("reward", *reward_flags, output="reward")
    words = (
        "judge",
        "--input_path",
        answers,
        "--output_path",
        "j.json",
        "--reward_model",
        model,
        "--device",
        "cpu",
    )
    outcome = run(*words, "--dtype", "float32", "--concurrency", 2)
    assert outcome.status == 0, outcome.err
    idle = [line for line in outcome.out.splitlines() if "without effect" in line]
    assert idle == [f"--concurrency: without effect, reward model {model} judges"]
    for row in json.loads(Path("j.json").read_text()):
        assert row["preference"] == (2 if row["score_2"] > row["score_1"] else 1)


@pytest.mark.parametrize(
    ("key", "url", "said"),
    [
        ("sk-…of-the-test", "http://127.0.0.1:9/v1", "has characters that no key has"),
        ("sk-of\r-the-test", "http://127.0.0.1:9/v1", "has characters that no key has"),
        (KEY, "http://me:of-the-test@127.0.0.1/v1", "holds credentials, which are not sent"),
        (KEY, "http://127.0.0.1:port/v1", "is no http(s) URL"),
        (KEY, "http://[::1/v1", "is no http(s) URL"),
        (KEY, "http://127.0.0.1:9/a b", "is no http(s) URL"),
    ],
)
def test_what_fits_into_no_request_is_refused_without_being_repeated(
    key: str, url: str, said: str, run: Run, answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    outcome = judged(run, answers, url)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert said in outcome.err
    assert "of-the-test" not in outcome.out + outcome.err


def test_a_line_end_behind_the_key_is_no_part_of_it(
    run: Run, answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\n")
    with judge_server() as (url, log):
        outcome = judged(run, answers, url, "--max_samples", 1)
    assert outcome.status == 0, outcome.err
    assert set(log.keys) == {f"Bearer {KEY}"}


def test_a_reward_models_verdicts_depend_on_how_it_reads_the_instructions() -> None:
    def flags(*more: str) -> JudgeArguments:
        return parse_judge(["--input_path", "i", "--output_path", "o", *more]).settings

    asked = [depends_on(flags("--reward_model", "r", *more), [], "r") for more in ((), ("--chat",))]
    assert asked[0] != asked[1]
    assert depends_on(flags(), [], "m") == depends_on(flags("--chat"), [], "m")


def test_preferences_and_the_interval_by_hand() -> None:
    reference, answer, tie, unclear = Verdict.REFERENCE, Verdict.ANSWER, Verdict.TIE, Verdict.UNCLEAR
    assert preference([answer, answer]) == 2
    assert preference([answer, tie]) == 2
    assert preference([answer, reference]) == 1.5
    assert preference([reference, tie]) == 1
    assert preference([unclear, reference]) == 1
    assert preference([unclear, unclear]) is None
    ten = WinRate.of([2] * 10)  # Wilson: 1 / (1 + z²/n) at the lower end
    assert (ten.rate, ten.low) == (1.0, pytest.approx(1 / (1 + 1.96**2 / 10)))
    assert ten.high == pytest.approx(1.0)
    assert WinRate.of([]).rate == 0.5


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("FIRST", "FIRST"),
        ("**Second**.", "SECOND"),
        ("The first is short, the second is right.\nSECOND", "SECOND"),
        ("FIRST or SECOND", None),
        ("", None),
        ("tied", None),
    ],
)
def test_reading_a_verdict(said: str, word: str | None) -> None:
    assert read_verdict(said) == word
