"""A page to chat with one model, or with two side by side (SFT and RLHF), in a browser.

gradio is wanted here alone, and only for the page itself: what is said comes from `exchange`, which knows nothing of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from rlhf_hw.data.example import Message
from rlhf_hw.errors import UserError
from rlhf_hw.evaluation.asked import Asked
from rlhf_hw.evaluation.conversation import Manner, fitting, said

#: As gradio keeps a conversation: {"role": …, "content": …} a turn.
History = list[dict[str, str]]


def exchange(
    models: Mapping[str, Asked], histories: Sequence[History], message: str, manner: Manner
) -> Iterator[list[History]]:
    """Each model's history with `message` and its answer, again at every piece that comes in; one model after the other.

    A message that fits into no context is answered by a line that says so.
    """
    grown = [[*history, {"role": "user", "content": message}] for history in histories]
    for history in grown:
        history.append({"role": "assistant", "content": ""})
    yield grown
    for asked, history in zip(models.values(), grown, strict=True):
        turns = [Message(turn["role"], turn["content"]) for turn in history[:-1]]  # type: ignore[arg-type]
        try:
            for piece in said(asked, fitting(asked, turns, manner), manner):
                history[-1]["content"] += piece
                yield grown
        except UserError as error:
            history[-1]["content"] = f"({error})"
        history[-1]["content"] = history[-1]["content"].strip()
        yield grown


def check_gradio() -> None:
    """Raise UserError where the page's library is missing."""
    if find_spec("gradio") is None:
        raise UserError("--web: gradio is not installed; pip install --no-deps -r requirements-web.txt")


def build_page(models: Mapping[str, Asked], manner: Manner) -> Any:
    """The page as a gradio app, not started. `manner` is what its controls begin with."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio

    with gradio.Blocks(title="rlhf_hw chat", analytics_enabled=False, fill_height=True) as page:
        gradio.Markdown("## " + (" and ".join(models) if len(models) > 1 else next(iter(models))))
        with gradio.Row():
            chats = [
                gradio.Chatbot(
                    label=f"{name}: {asked.name}", height=460, buttons=["copy"], feedback_options=None
                )
                for name, asked in models.items()
            ]
        with gradio.Row():
            box = gradio.Textbox(
                placeholder="Type a message and Enter",
                show_label=False,
                scale=8,
                autofocus=True,
                elem_id="message",
            )
            send = gradio.Button("Send", variant="primary", scale=1)
            clear = gradio.Button("Clear", scale=1)
        with gradio.Accordion("How answers are drawn", open=False), gradio.Row():
            controls = [
                gradio.Slider(1, 1024, manner.max_new_tokens, step=1, label="max_new_tokens"),
                gradio.Slider(0, 2, manner.temperature, step=0.05, label="temperature (0: greedy)"),
                gradio.Slider(0.05, 1, manner.top_p, step=0.05, label="top_p"),
                gradio.Slider(1, 8, manner.num_beams, step=1, label="beams"),
                gradio.Slider(
                    0, 10, manner.no_repeat_ngram_size, step=1, label="no_repeat_ngram_size (0: off)"
                ),
            ]

        def answer(message: str, *values: Any) -> Iterator[list[Any]]:
            histories, numbers = values[: len(models)], values[len(models) :]
            names = ("max_new_tokens", "temperature", "top_p", "num_beams", "no_repeat_ngram_size")
            chosen = replace(manner, **dict(zip(names, numbers, strict=True)))
            texts = [[plain_turn(turn) for turn in history or []] for history in histories]
            if not message.strip():
                yield [message, *texts]
                return
            for grown in exchange(models, texts, message.strip(), chosen):
                yield ["", *grown]

        for begin in (box.submit, send.click):
            begin(answer, [box, *chats, *controls], [box, *chats])
        clear.click(lambda: ["", *([] for _ in models)], None, [box, *chats])
    return page


def plain_turn(turn: Mapping[str, Any]) -> dict[str, str]:
    """A turn as gradio hands it back (its text may come in parts) with its text alone."""
    content = turn["content"]
    if not isinstance(content, str):
        content = "".join(part.get("text", "") if isinstance(part, dict) else str(part) for part in content)
    return {"role": str(turn["role"]), "content": content}


def serve(models: Mapping[str, Asked], manner: Manner, host: str, port: int) -> None:
    """Show the page until the process is ended.

    Raises:
        UserError: the port is taken, or a proxy stands between this process and its own page.
    """
    import gradio

    page = build_page(models, manner)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # none from another server
    try:
        page.queue(default_concurrency_limit=1).launch(  # one generation at a time on one device
            server_name=host,
            server_port=port,
            share=False,
            footer_links=[],
            theme=gradio.themes.Default(**fonts),
            prevent_thread_lock=True,
        )
    except ValueError as error:  # it looks at its own page before it goes on
        raise UserError(
            f"--web: gradio could not reach its own page at {host}:{port} ({error}); where there is a proxy, set "
            "NO_PROXY=127.0.0.1,localhost"
        ) from error
    except OSError as error:
        raise UserError(f"--port: {host}:{port} cannot be served ({error}); give another") from error
    page.block_thread()
