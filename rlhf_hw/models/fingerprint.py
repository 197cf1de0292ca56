"""What a model is, by what its files hold: a model that was trained again into the same directory is another one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rlhf_hw.models.load import adapter_base, is_adapter

#: What an answer depends on: weights, configurations, tokenizer, chat template. Not what a training leaves beside them.
_FILES = (
    *("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*.index.json"),
    *("config.json", "adapter_config.json", "generation_config.json", "chat_template*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)
#: Files up to this size are read whole; of larger ones, blocks all over the file.
_WHOLE = 64 * 2**20
_BLOCK = 64 * 2**10
_BLOCKS = 256


def model_fingerprint(name: str) -> str:
    """A digest of the files of the model in directory (or file) `name`, and of an adapter's base.

    A name on the hub stands for itself. Of a file above 64 MiB 256 blocks are read, evenly spread (16 MiB), and its
    size: training changes nearly every weight, so it is seen in any of them.
    """
    path = Path(name)
    if not path.exists():
        return f"{name} on the hub"
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted({file for pattern in _FILES for file in path.glob(pattern)})
    for file in files:
        if file.is_file():
            digest.update(f"{file.name if path.is_dir() else ''} {file.stat().st_size}\n".encode())
            _read_into(digest, file)
    if is_adapter(name):
        digest.update(model_fingerprint(adapter_base(name)).encode())
    return f"sha256 {digest.hexdigest()[:16]}"


def _read_into(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as content:
        if size <= _WHOLE:
            digest.update(content.read())
            return
        for block in range(_BLOCKS):  # the first and the last block among them
            content.seek(block * (size - _BLOCK) // (_BLOCKS - 1))
            digest.update(content.read(_BLOCK))
