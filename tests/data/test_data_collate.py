import torch

from rlhf_hw.data.collate import PairCollator, SFTCollator

EOS = PAD = 2
ROWS = [
    {"input_ids": [5, 6, 7, EOS], "loss_mask": [0, 0, 1, 1]},
    {"input_ids": [8, EOS], "loss_mask": [0, 1]},
]
PACKED = [
    {"input_ids": [5, 6, EOS, 8, EOS], "loss_mask": [0, 1, 1, 1, 1], "seq_lengths": [3, 2]},
    {"input_ids": [9, EOS], "loss_mask": [0, 1], "seq_lengths": [2]},
]


def test_labels_and_attention_come_from_positions_although_pad_is_eos():
    batch = SFTCollator(PAD)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, EOS], [8, EOS, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, EOS], [-100, EOS, -100, -100]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_the_shape_policy_decides_the_width_of_every_tensor():
    seen = []

    def to_eight(length):
        seen.append(length)
        return 8

    for batch in (SFTCollator(PAD, to_eight)(PACKED), SFTCollator(PAD, to_eight)(ROWS)):
        assert {tuple(tensor.shape) for tensor in batch.values()} == {(2, 8)}
    assert seen == [5, 4]


def test_packed_rows_say_where_each_sequence_is():
    batch = SFTCollator(PAD)(PACKED)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch["sequence_ids"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]
    assert torch.equal(batch["sequence_ids"] > 0, batch["attention_mask"].bool())


def test_no_sequence_learns_its_first_token_from_the_one_before_it():
    assert SFTCollator(PAD)(PACKED)["labels"].tolist() == [
        [-100, 6, EOS, -100, EOS],
        [-100, EOS, -100, -100, -100],
    ]


def test_a_packed_row_has_the_labels_of_its_sequences_apart():
    apart = [{"input_ids": [5, 6, EOS], "loss_mask": [0, 1, 1]}, {"input_ids": [8, EOS], "loss_mask": [1, 1]}]
    packed = SFTCollator(PAD)(PACKED[:1])["labels"]
    assert packed[packed != -100].tolist() == [
        label
        for row in apart
        for label in SFTCollator(PAD)([row])["labels"].flatten().tolist()
        if label != -100
    ]


def test_pairs_become_chosen_rows_then_rejected_rows():
    pairs = [
        {"chosen_input_ids": [5, EOS], "rejected_input_ids": [5, 6, EOS]},
        {"chosen_input_ids": [7, EOS], "rejected_input_ids": [8], "margin": 0.5},
    ]
    batch = PairCollator(PAD)(pairs)
    assert batch["margin"].tolist() == [0, 0.5]
    assert batch["input_ids"].tolist() == [[5, EOS, PAD], [7, EOS, PAD], [5, 6, EOS], [8, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
