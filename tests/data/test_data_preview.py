import pytest

from rlhf_hw.cli.data import main, marked_tokens

ROWS = [
    {"prompt": f"Question {n} [bold]?", "chosen": f" Yes, {n} é", "rejected": f" No, {n} ñ"} for n in range(5)
]


@pytest.fixture
def preview(write_jsonl, tmp_path, tiny_tokenizer, capsys):
    """Run the command on five preference rows; (exit status, standard output, standard error)."""
    path = write_jsonl(ROWS)
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")

    def run(*options, with_tokenizer=True, name=path):
        tokenizer = ["--tokenizer", str(tmp_path / "tokenizer")] if with_tokenizer else []
        status = main(["preview", name, "--cache_dir", str(tmp_path / "cache"), *tokenizer, *options])
        return status, *capsys.readouterr()

    return run


def test_rows_and_report_are_shown_as_text(preview):
    status, output, _ = preview("--rows", "2", with_tokenizer=False)
    assert status == 0
    assert "[prompt] Question 0 [bold]?" in output
    assert "[rejected]  No, 1 ñ" in output
    assert "Question 2" not in output
    assert "5 rows read as preference, 5 converted, 5 usable" in output


def test_without_colour_the_targets_stand_in_brackets_and_eos_is_seen(preview):
    _, output, _ = preview("--rows", "1")
    assert "Question 0 [bold]?⟦ Yes, 0 é<|endoftext|>⟧" in output
    assert "\x1b[" not in output
    assert "5 of 5 rows kept; tokens a row: min" in output


def test_a_pair_is_marked_from_its_first_difference_on(preview):
    _, output, _ = preview("--purpose", "reward", "--rows", "1")
    answers = [line.partition("]? ")[2] for line in output.splitlines() if line.endswith("⟧")]
    assert [answer.replace("⟦", "") for answer in answers] == [
        "Yes, 0 é<|endoftext|>⟧",
        "No, 0 ñ<|endoftext|>⟧",
    ]


def test_a_row_that_training_would_drop_is_shown_with_the_reason(preview):
    status, output, _ = preview("--purpose", "ppo", "--rows", "1", "--max_length", "2")
    assert status == 2
    assert "the prompt is longer than max_prompt_length" in output


def test_bad_input_is_one_line_and_status_two(preview):
    status, output, error = preview(name="no/such/file.json")
    assert (status, output, error.count("\n")) == (2, "", 1)
    assert "no/such/file.json" in error


def test_in_colour_targets_are_green_masked_tokens_dim_and_special_ones_reversed(tiny_tokenizer):
    ids = [
        *tiny_tokenizer("ab")["input_ids"],
        *tiny_tokenizer("cd")["input_ids"],
        tiny_tokenizer.eos_token_id,
    ]
    mask = [0] * len(tiny_tokenizer("ab")["input_ids"]) + [1] * (len(tiny_tokenizer("cd")["input_ids"]) + 1)
    text = marked_tokens(ids, mask, tiny_tokenizer, with_brackets=False)
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles == {"ab": "dim", "cd": "green", "<|endoftext|>": "green bold reverse"}
