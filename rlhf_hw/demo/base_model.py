"""The demo's base model, made from scratch: a byte-level tokenizer and a Llama of about three million parameters.

Nothing is downloaded. The weights are random: the demo's SFT stage teaches it English (of a kind) from nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
VOCABULARY_SIZE = 2048
CONTEXT_LENGTH = 256

# Renders a conversation exactly as the demo's raw prompts are written, so that the same model can be talked to.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'user' %}Customer: {{ message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}Assistant: {{ message['content'] | trim }}{{ eos_token }}"
    "{% else %}{{ message['content'] | trim }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts`; the same texts give the same tokenizer.

    It adds no special token by itself: whoever builds a sequence places `</s>`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_base_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, hidden_size: int = 256, layers: int = 3
) -> LlamaForCausalLM:
    """A Llama with random weights drawn from `seed`; the caller's random state is left as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=hidden_size**-0.5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            _start_as_copier(layer.self_attn)
    return model


@torch.no_grad()
def _start_as_copier(attention: torch.nn.Module) -> None:
    """Draw an attention layer whose heads look for like tokens and hand on what they find.

    Value and output projections start as inverse rotations, query and key projections as one rotation plus noise, the
    structure that trained transformers have (mimetic initialization, Trockman and Kolter, arXiv:2305.09828, with a
    positive sign for copying). An answer has to repeat the word it was asked about, and from an ordinary start the
    model finds that out late: after 400 SFT steps the gold score's `on_topic` was 0.00 to 0.02, from this one up to 0.18.
    """
    value = torch.nn.init.orthogonal_(torch.empty_like(attention.v_proj.weight))
    attention.v_proj.weight.copy_(value)
    attention.o_proj.weight.copy_(value.T)
    alike = torch.nn.init.orthogonal_(torch.empty_like(value)) * 0.5**0.5
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.5).add_(alike)


def make_base(directory: str, seed: int) -> None:
    """Write the base model and its tokenizer to `directory`, as transformers would save any model."""
    tokenizer = build_tokenizer(demo_texts())
    build_base_model(tokenizer, seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def demo_texts() -> list[str]:
    """The text of the training files; the held-out file is not among them."""
    texts: list[str] = []
    for name in ("demonstrations.jsonl", "train.jsonl"):
        lines = resources.files("rlhf_hw.demo").joinpath(name).read_text(encoding="utf-8").splitlines()
        for row in map(json.loads, lines):
            texts.extend(row["prompt"] + row[column] for column in row if column != "prompt")
    return texts
