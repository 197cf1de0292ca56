import pytest

from rlhf_hw.data.collate import IGNORED_LABEL, SFTCollator
from rlhf_hw.data.sources import DataSource
from rlhf_hw.data.unsupervised import unsupervised_blocks
from rlhf_hw.errors import UserError

TEXTS = [f"Sentence number {number} of the text.\n" for number in range(40)]


@pytest.fixture
def source(write_jsonl, tmp_path):
    def source(rows, **options):
        return DataSource(dataset_name=write_jsonl(rows), cache_dir=str(tmp_path / "cache"), **options)

    return source


def test_blocks_are_the_texts_end_to_end_without_the_remainder(source, tiny_tokenizer):
    rows = [{"text": text} for text in TEXTS]
    blocks = unsupervised_blocks(source([*rows[:20], {"text": " \n"}, *rows[20:]]), tiny_tokenizer, 32)
    stream = [token for text in TEXTS for token in tiny_tokenizer(text)["input_ids"]]
    assert len(blocks) == len(stream) // 32
    assert [token for row in blocks for token in row["input_ids"]] == stream[: len(blocks) * 32]


def test_blocks_collate_as_fine_tuning_rows_do(source, tiny_tokenizer):
    blocks = unsupervised_blocks(source([{"text": text} for text in TEXTS]), tiny_tokenizer, 32)
    batch = SFTCollator(tiny_tokenizer.pad_token_id)([blocks[0], blocks[1]])
    assert batch["input_ids"].shape == (2, 32)
    assert bool(batch["attention_mask"].all())
    assert batch["labels"][:, 0].tolist() == [IGNORED_LABEL] * 2
    assert batch["labels"][:, 1:].equal(batch["input_ids"][:, 1:])


def test_a_tokenizer_that_begins_texts_begins_each_of_them(source, bos_tokenizer):
    blocks = unsupervised_blocks(source([{"text": text} for text in TEXTS]), bos_tokenizer, 16)
    begins = sum(row["input_ids"].count(bos_tokenizer.bos_token_id) for row in blocks)
    assert 1 < begins <= len(TEXTS)


def test_no_more_texts_are_read_than_asked_for(source, tiny_tokenizer):
    rows = [{"text": TEXTS[0]}, {"text": TEXTS[1]}, {"no text": "here"}]
    blocks = unsupervised_blocks(source(rows, max_train_samples=2), tiny_tokenizer, 4)
    assert len(blocks) == sum(len(tiny_tokenizer(text)["input_ids"]) for text in TEXTS[:2]) // 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"body": "x"}], "row 1: no text in a column named 'text' .columns: body."),
        ([{"text": "x"}, {"text": None}], "row 2: no text"),
        ([{"text": "short"}], "less than one block of 512"),
    ],
)
def test_a_set_without_enough_text_is_refused_in_one_line(source, tiny_tokenizer, rows, message):
    with pytest.raises(UserError, match=message) as raised:
        unsupervised_blocks(source(rows), tiny_tokenizer)
    assert "\n" not in str(raised.value)
