"""Commands run inside this process (seconds saved on imports), each as if in a process of its own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
from accelerate.state import AcceleratorState, GradientState
from run_results import write_rows

from rlhf_hw.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data of these tests are cached: nothing of the user's is read or written."""
    return tmp_path_factory.mktemp("data_cache")


@pytest.fixture
def workplace(tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what a command changes in its process is put back afterwards."""
    environment, path, argv = dict(os.environ), list(sys.path), list(sys.argv)
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", data_cache)
    # curves take four fifths of the time of a run this small; tests/report and tests/seed_commands draw them
    monkeypatch.setattr("rlhf_hw.report.report.draw_plots", lambda rows, directory, name: [])
    yield tmp_path
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:], sys.argv[:] = path, argv
    logging.setLogRecordFactory(factory)
    sys.excepthook = hook
    logging.getLogger("rlhf_hw").handlers.clear()  # they write to this test's captured stream


@pytest.fixture
def run(workplace: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """`rlhf-hw` with the given words, in the empty working directory."""

    def command(*words: object) -> Outcome:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        logging.getLogger("rlhf_hw").handlers.clear()
        capfd.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
        return Outcome(status, *capfd.readouterr())

    return command


@pytest.fixture
def trained(run: Command) -> Callable[..., Path]:
    """Run a stage, which must succeed, into a directory below the working directory; that directory."""

    def train(stage: str, *flags: object, output: str = "out") -> Path:
        outcome = run(stage, "--output_dir", output, *flags)
        assert outcome.status == 0, outcome.err
        return Path(output).absolute()

    return train


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions with a better and a worse answer, of about 60 tokens each."""
    rows = [
        {
            "question": f"How many are {number} apples and {2 * number} apples?",
            "chosen": f"Together they are {3 * number} apples" + ", and that is all" * (number % 3) + ".",
            "rejected": "I do not know" + ", nor do I care" * (number % 2) + ".",
        }
        for number in range(12)
    ]
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


@pytest.fixture(scope="session")
def sft_flags(text_llama_dir: Path, pairs_file: Path) -> list[object]:
    """Two steps of supervised fine-tuning in fp32."""
    return [
        *("--model_name_or_path", text_llama_dir, "--train_file", pairs_file, "--bf16", "False"),
        *("--max_steps", 2, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--lora_dropout", 0),
        *("--learning_rate", 0.01),
    ]


@pytest.fixture(scope="session")
def reward_flags(sft_flags: list[object]) -> list[object]:
    """Two steps of reward modelling in fp32, with two pairs kept for evaluation."""
    return [*sft_flags, "--eval_dataset_size", 2]


@pytest.fixture(scope="session")
def ppo_flags(text_llama_dir: Path, pairs_file: Path) -> list[object]:
    """Two updates of PPO in fp32: four answers of at most six tokens each, two optimizer steps."""
    return [
        *("--model_name", text_llama_dir, "--train_file", pairs_file, "--bf16", "False"),
        *("--steps", 8, "--batch_size", 4, "--mini_batch_size", 2, "--gradient_accumulation_steps", 2),
        *("--ppo_epochs", 2, "--output_max_length", 6, "--learning_rate", 0.01),
    ]


@pytest.fixture(scope="session")
def language_model_flags(text_llama_dir: Path, pairs_file: Path) -> list[object]:
    return ["--model_name_or_path", text_llama_dir, "--train_file", pairs_file]


@pytest.fixture
def refused(run: Command, workplace: Path) -> Callable[..., str]:
    """Run a command that must be refused before anything is written; the one line it says about that."""

    def command(*words: object) -> str:
        before = snapshot(workplace)
        outcome = run(*words)
        lines = [line for line in outcome.err.splitlines() if "error:" in line]
        assert outcome.status == 2, outcome.err
        assert len(lines) == 1, outcome.err
        assert lines[0].startswith(f"rlhf-hw {words[0]}: error: ")
        assert "Traceback" not in outcome.err + outcome.out
        assert snapshot(workplace) == before
        return lines[0]

    return command


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed counts as installed; nothing here gets as far as importing it."""
    monkeypatch.setattr("rlhf_hw.arguments.sharding.find_spec", lambda name: name)


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every path below a directory, with the bytes of the files."""
    paths = sorted(directory.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}
