"""What the Gaudi trainer's and generation's tests run in processes of their own: tiny random models, fixed data.

    python gaudi_programs.py '{"task": "train", "model": "llama", "arguments": {"max_steps": 3}}'

prints one line of JSON, the result, as the last line of its standard output.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from without_torchvision import seat_glm4v_tokenizer

VOCABULARY = 96


def tiny_config(name: str) -> Any:
    from transformers import AutoConfig

    common = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    wide = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
    }
    shapes = {
        "llama": {**wide, "intermediate_size": 48, "num_key_value_heads": 2},
        "qwen2": {**wide, "intermediate_size": 48, "num_key_value_heads": 2, "use_sliding_window": False},
        "opt": {**wide, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
        "gpt2": {
            "n_embd": 32,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 128,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
        | {"resid_pdrop": 0.0},
    }
    return AutoConfig.for_model(name, **shapes[name], **common)


def tiny_model(name: str, **keywords: Any) -> torch.nn.Module:
    """The same weights in every process: they are made on the CPU from one seed."""
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(0)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(tiny_config(name), **keywords)
    return model


def examples(count: int = 32, length: int = 16) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.clone()} for row in tokens
    ]


def train(request: dict[str, Any]) -> dict[str, Any]:
    """Trains and says the losses; with `resume`, from the checkpoint that `output_dir` holds."""
    from optimum.habana import GaudiConfig, GaudiTrainer, GaudiTrainingArguments
    from optimum.habana.transformers.modeling_utils import adapt_transformers_to_gaudi

    adapt_transformers_to_gaudi()  # use_cpu=True, unlike the HPU, would leave it to us
    arguments = GaudiTrainingArguments(
        **{
            "output_dir": "out",
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            **request["arguments"],
        }
    )
    model = tiny_model(request["model"], **request.get("model_keywords", {}))
    if request.get("lora"):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.0, target_modules=request["lora"])
        )
    trainer = GaudiTrainer(
        model=model,
        args=arguments,
        gaudi_config=GaudiConfig(**request.get("gaudi_config", {})),
        train_dataset=examples(),
        eval_dataset=examples(8),
    )
    trainer.train(resume_from_checkpoint=request.get("resume"))
    result = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "device": str(next(trainer.model.parameters()).device),
        "rank": arguments.process_index,
    }
    if request.get("evaluate"):
        result["eval_loss"] = trainer.evaluate()["eval_loss"]
    if request.get("weights"):
        result["weights"] = {
            name: parameter.detach().double().sum().item()
            for name, parameter in trainer.model.named_parameters()
        }
    return result


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Generates once for each of `settings`, from the same prompts; gives prompts and new tokens.

    With `count`, how many distinct graphs that took as well.
    """
    from optimum.habana.transformers.modeling_utils import adapt_transformers_to_gaudi

    adapt_transformers_to_gaudi()
    device = request.get("device", "hpu")
    model = tiny_model(request["model"]).eval().to(device)
    prompts = torch.randint(3, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(prompts)
    mask[0, :3] = 0
    prompts[0, :3] = 0
    if request.get("hpu_graphs"):
        from habana_frameworks.torch.hpu import wrap_in_hpu_graph

        model = wrap_in_hpu_graph(model)
    from habana_torch_plugin_emulator.accounting import count_graphs

    tokens = []
    with count_graphs() if request.get("count") else contextlib.nullcontext() as count:
        for settings in request["settings"]:
            torch.manual_seed(3)
            out = model.generate(
                input_ids=prompts.to(device),
                attention_mask=mask.to(device),
                **{
                    "max_new_tokens": 8,
                    "do_sample": False,
                    "pad_token_id": 0,
                    "eos_token_id": None,
                    **settings,
                },
            )
            tokens.append(out.cpu()[:, : prompts.shape[1] + settings.get("max_new_tokens", 8)].tolist())
    device = str(next(model.parameters()).device)
    return {"tokens": tokens, "device": device, "distinct": count.distinct if count else None}


TASKS = {"train": train, "generate": generate}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    seat_glm4v_tokenizer()
    answers = [TASKS[request["task"]](request) for request in (asked if isinstance(asked, list) else [asked])]
    sys.stdout.flush()
    out = json.dumps(answers if isinstance(asked, list) else answers[0])
    rank = answers[0].get("rank", 0)
    Path(f"result.rank{rank}.json").write_text(out)
    print(out)
