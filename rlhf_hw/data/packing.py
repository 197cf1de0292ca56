"""Several examples in one row: blocks without borders, or packs that keep them apart."""

import numpy as np
import pyarrow
from datasets import Dataset
from trl.data_utils import pack_dataset

from rlhf_hw.data.fingerprint import fingerprint_of_values
from rlhf_hw.errors import UserError


def dataset_concatenation(dataset: Dataset, block_length: int) -> Dataset:
    """Columns `input_ids`, `loss_mask`: all rows end to end, cut into blocks of `block_length` tokens.

    What does not fill the last block is dropped. A block's tokens attend to whatever stands before them in the
    block, other examples too: that is what the recipe with this flag trains on. `pack` keeps examples apart.
    """

    def concatenate(table: pyarrow.Table) -> pyarrow.Table:
        columns = {}
        for name in ("input_ids", "loss_mask"):
            values = table[name].combine_chunks().flatten()
            blocks = len(values) // block_length
            offsets = np.arange(0, (blocks + 1) * block_length, block_length, dtype=np.int32)
            columns[name] = pyarrow.ListArray.from_arrays(offsets, values[: blocks * block_length])
        return pyarrow.table(columns)

    # One batch of everything, so that only one remainder is lost; Arrow makes that two slices and no copy.
    blocks = dataset.with_format("arrow").map(
        concatenate,
        batched=True,
        batch_size=None,
        features=dataset.features,
        new_fingerprint=fingerprint_of_values(dataset._fingerprint, "dataset_concatenation", block_length),
        desc="Concatenating",
    )
    if not len(blocks):
        raise UserError(
            f"--dataset_concatenation: the train set does not fill one block of {block_length} tokens"
        )
    return blocks.with_format(None)


def pack(dataset: Dataset, max_length: int) -> Dataset:
    """Columns `input_ids`, `loss_mask`, `seq_lengths`: whole examples put together, at most `max_length` tokens.

    Best-fit decreasing, as TRL does it, a thousand rows at a time. `seq_lengths` are the lengths of the
    examples in a row, in order; `SFTCollator` makes of them what keeps attention inside each example. Rows
    must be no longer than `max_length`.
    """
    return pack_dataset(
        dataset,
        max_length,
        strategy="bfd",
        map_kwargs={
            "new_fingerprint": fingerprint_of_values(dataset._fingerprint, "pack", max_length),
            "desc": "Packing",
        },
    )
