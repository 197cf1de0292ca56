"""Fixtures shared by every room: small, made here, nothing downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model
from tiny_models import word_tokenizer as make_word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = (
    "Human: What is the capital of France?",
    "Assistant: The capital of France is Paris.",
    "Human: Name a colour. Assistant: Blue is a colour, and so is green.",
    "Below is an instruction that describes a task. Write a response that completes the request.",
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 tokens: every text round-trips, no BOS, no chat template, and pad == eos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
    )


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Each of the decoders whose quirks differ: rotary or learnt positions, tied or own head, projected embeddings."""
    return request.param


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """`tiny_models.tiny_model`."""
    return tiny_model


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """`tiny_models.word_tokenizer`: pad, BOS, EOS and unknown all apart."""
    return make_word_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama_dir(word_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with the tiny Llama and `word_tokenizer`, as `save_pretrained` writes them."""
    directory = tmp_path_factory.mktemp("tiny_llama")
    tiny_model("llama").save_pretrained(directory)
    word_tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def text_llama_dir(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a Llama of two layers of 32 that reads any text (`tiny_tokenizer`), up to 2048 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    directory = tmp_path_factory.mktemp("text_llama")
    LlamaForCausalLM(config).save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory
