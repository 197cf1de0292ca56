import pytest
from datasets import Dataset

from rlhf_hw.data.packing import dataset_concatenation, pack
from rlhf_hw.data.tokenize import SFT_FEATURES
from rlhf_hw.errors import UserError

LENGTHS = [5, 2, 9, 3, 1, 7, 10, 4]


def rows(lengths=LENGTHS):
    """Rows whose ids say which row (hundreds) and which place (units) they are; every third token is masked."""
    return Dataset.from_dict(
        {
            "input_ids": [
                [100 * number + place for place in range(n)] for number, n in enumerate(lengths, 1)
            ],
            "loss_mask": [[int(place % 3 > 0) for place in range(n)] for n in lengths],
        },
        features=SFT_FEATURES,
    )


def flatten(dataset, column):
    return [value for row in dataset[column] for value in row]


@pytest.mark.parametrize("block_length", [1, 4, 41])
def test_blocks_are_the_rows_end_to_end_without_the_remainder(block_length):
    blocks = dataset_concatenation(rows(), block_length)
    kept = sum(LENGTHS) // block_length * block_length
    for column in ("input_ids", "loss_mask"):
        assert flatten(blocks, column) == flatten(rows(), column)[:kept]
        assert {len(block) for block in blocks[column]} == {block_length}


def test_only_one_remainder_is_lost_however_many_rows_there_are():
    assert len(dataset_concatenation(rows([3] * 2500), 7)) == 3 * 2500 // 7


def test_blocks_follow_a_selection_of_rows():
    """Arrow slices keep the whole column behind them: the offset must be honoured."""
    for chosen in (rows().select(range(2, 5)), rows().select([6, 0, 3])):
        assert (
            flatten(dataset_concatenation(chosen, 2), "input_ids")
            == flatten(chosen, "input_ids")[: 2 * (len(flatten(chosen, "input_ids")) // 2)]
        )


def test_too_little_text_for_one_block_is_refused():
    with pytest.raises(UserError, match=r"--dataset_concatenation: .* one block of 512"):
        dataset_concatenation(rows(), 512)


def test_packs_hold_every_row_once_and_whole():
    packs = pack(rows(), 10)
    found = []
    for row in packs:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["loss_mask"]) <= 10
        start = 0
        for length in row["seq_lengths"]:
            found.append((row["input_ids"][start : start + length], row["loss_mask"][start : start + length]))
            start += length
    assert sorted(found) == sorted((row["input_ids"], row["loss_mask"]) for row in rows())


def test_packs_are_as_few_as_can_be_where_rows_fit_exactly():
    assert len(pack(rows([6, 4, 7, 3, 5, 5, 10]), 10)) == 4
