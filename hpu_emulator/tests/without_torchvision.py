"""optimum-habana imports every model it knows, and one tokenizer of them (glm4v's) imports torchvision.

A Gaudi's container has torchvision. Where it is missing, `seat_glm4v_tokenizer()` puts a class that says so in that one
tokenizer's place; call it before the first GaudiTrainingArguments.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

MODULE = "optimum.habana.transformers.models.glm4v.tokenization_chatglm"


def seat_glm4v_tokenizer() -> None:
    """Does nothing where torchvision is installed."""
    if importlib.util.find_spec("torchvision") is not None or MODULE in sys.modules:
        return
    from transformers import PreTrainedTokenizer

    class ChatGLM4Tokenizer(PreTrainedTokenizer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise ImportError("glm4v's tokenizer needs torchvision, which is not installed")

    module = types.ModuleType(MODULE)
    module.ChatGLM4Tokenizer = ChatGLM4Tokenizer  # type: ignore[attr-defined]
    sys.modules[MODULE] = module
