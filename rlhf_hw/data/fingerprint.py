"""Fingerprints of content: the names under which converted and tokenized data are cached.

A cache is read again exactly when data, tokenizer, options and the code of this room are all what they were.
Paths and times are no part of it: a copied file hits the cache, an edited one misses.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_READ_BYTES = 1 << 20


def fingerprint_of_values(*values: object) -> str:
    """32 hex digits for a sequence of values, told apart by their `repr`."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        digest.update(repr(value).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def fingerprint_of_files(paths: Iterable[Path]) -> str:
    """32 hex digits for the bytes of the files, in order; their suffixes count (they choose the reader)."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(f"{''.join(path.suffixes[-2:])}:{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def fingerprint_of_code() -> str:
    """Of the code of this room: what an older version of it wrote is not what this one would write."""
    return fingerprint_of_files(sorted(Path(__file__).parent.rglob("*.py")))


def fingerprint_of_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of everything about a tokenizer that decides ids: vocabulary, merges, special tokens, chat template.

    Not of where it was loaded from, nor of the truncation and padding state that a fast tokenizer keeps from
    its last call (which makes a pickled hash change between two equal runs).
    """
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        model = fingerprint_of_values(
            sorted(
                (key, json.dumps(value))
                for key, value in backend.items()
                if key not in ("truncation", "padding")
            )
        )
    else:
        with tempfile.TemporaryDirectory() as directory:
            tokenizer.save_vocabulary(directory)
            model = fingerprint_of_files(sorted(Path(directory).iterdir()))
    return fingerprint_of_values(
        type(tokenizer).__name__,
        model,
        tokenizer.chat_template,
        sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items()),
        sorted((str(token), number) for token, number in tokenizer.get_added_vocab().items()),
        tokenizer("a")["input_ids"],  # whether a beginning or an end is added of itself
    )
