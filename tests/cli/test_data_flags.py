"""The data flags through the stages themselves: which rows each of them trains on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


def write(path: str, rows: list[dict[str, str]]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(rows))
    return path


@pytest.fixture
def sets(workplace: Path) -> dict[str, str]:
    """Two sets for every stage, of 50 and 10 rows, and a third of 10 dialogues without rejected answers."""

    def pairs(question: str, count: int) -> list[dict[str, str]]:
        return [
            {"prompt": question.format(n), "chosen": f" It is {n}.", "rejected": " No idea."}
            for n in range(count)
        ]

    dialogues = [{"instruction": f"Human: Is it {n}? Assistant: ", "output": "So it is."} for n in range(10)]
    write("rm-static/train.json", pairs("\n\nHuman: What is {}?\n\nAssistant:", 50))
    write("synthetic-instruct-gptj-pairwise/train.json", pairs("How much is {}?", 10))
    write("MultiTurnAlpaca/train.json", dialogues)
    return {"both": "rm-static synthetic-instruct-gptj-pairwise", "dialogues": "MultiTurnAlpaca"}


def shared(sets: dict[str, str]) -> list[str]:
    both = sets["both"].split()
    return ["--data_path", *both, "--data_split", "2,4,4", "--sft_only_data_path", sets["dialogues"]]


def test_fine_tuning_gets_its_share_and_the_sets_that_are_its_alone(
    run: Command, sets: dict[str, str], text_llama_dir: Path
) -> None:
    outcome = run(
        "sft", "--model_name_or_path", text_llama_dir, *shared(sets), "--output_dir", "out", "--dry_run"
    )
    assert outcome.status == 0, outcome.err
    assert "rm-static gives 9 rows to train, 1 to validation" in outcome.err
    assert "synthetic-instruct-gptj-pairwise gives 2 rows to train" in outcome.err
    assert "MultiTurnAlpaca gives 9 rows to train, 1 to validation" in outcome.err
    assert "train 20 rows, validation 2 rows (3 sets mixed)" in outcome.err


def test_the_reward_model_gets_its_share_alone_and_says_so(
    run: Command, sets: dict[str, str], text_llama_dir: Path
) -> None:
    flags = ["--model_name_or_path", text_llama_dir, "--validation_split_percentage", 5, "--dry_run"]
    outcome = run("reward", *flags, *shared(sets), "--output_dir", "out")
    assert outcome.status == 0, outcome.err
    assert "--sft_only_data_path: no effect here" in outcome.err
    assert "--validation_split_percentage: no effect here" in outcome.err
    assert "train 22 rows, validation 2 rows (2 sets mixed)" in outcome.err


def test_ppo_answers_the_ends_of_long_prompts_where_asked_to(
    trained: Callable[..., Path],
    run: Command,
    ppo_flags: list[object],
    sets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("scores.py").write_text("def score(prompts, responses, **_):\n    return [0.0] * len(responses)\n")
    source = ppo_flags.index("--train_file")
    flags = [*ppo_flags[:source], *ppo_flags[source + 2 :], "--reward_function", "scores:score"]
    flags += ["--dataset_name", "rm-static", "--max_prompt_length", 5]
    dropped = run("ppo", *flags, "--output_dir", "out")
    assert dropped.status == 2
    assert "the prompt is longer than max_prompt_length: 50 rows" in dropped.err
    directory = trained("ppo", *flags, "--long_prompts", "truncate_left")
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert samples
    assert all(sample["prompt"].endswith("?\n\nAssistant:") for sample in samples)
    assert not any("Human" in sample["prompt"] for sample in samples)


def test_edited_data_are_read_anew_by_the_next_run(
    run: Command, workplace: Path, text_llama_dir: Path
) -> None:
    said = []
    for answer in ("Yes.", "Yes.", "Nay!"):
        rows = [{"prompt": "Human: Is it? Assistant:", "chosen": answer, "rejected": "?"}] * 4
        write("data/train.json", rows)
        write("data/eval.json", rows[:1])
        flags = ["--dataset_name", "local/jsonfile", "--output_dir", "out", "--overwrite_output_dir"]
        outcome = run("sft", "--model_name_or_path", text_llama_dir, *flags, "--do_eval", "--bf16", "False")
        assert outcome.status == 0, outcome.err
        said.append(re.search(r"evaluation: loss [\d.]+", outcome.err))
    assert said[0] is not None
    assert said[0][0] == said[1][0] != said[2][0]
