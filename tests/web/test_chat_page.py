"""The chat page in a real browser: two models beside each other, each with its own answers (make test-web)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import ENTER, Browser, browser, wait_for
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]

BOX = "#message textarea"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def words_of(model_dir: Path) -> list[str]:
    """Words that the tokenizer has a token for, each with a space before it."""
    tokens = AutoTokenizer.from_pretrained(model_dir).get_vocab()
    return sorted(
        token for token in tokens if token.startswith("Ġ") and token[1:].isalpha() and len(token) > 4
    )


def says_only(word: str, source: Path, directory: Path) -> Path:
    """A copy of the model that writes `word` and nothing else, whatever it is asked."""
    shutil.copytree(source, directory)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_input_embeddings().weight.fill_(1.0)  # all that is left is the way past the layers
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(word)] = 1.0
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def page(text_llama_dir: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """(address of the page with two models, what each of them says)."""
    words = words_of(text_llama_dir)[:2]
    models = [says_only(word, text_llama_dir, tmp_path / word[1:]) for word in words]
    port = free_port()
    flags = ["--web", "--path", models[0], "--compare", models[1], "--port", port, "--device", "cpu"]
    command = [sys.executable, "-m", "rlhf_hw", "chat", *flags, "--max_new_tokens", 2, "--temperature", 0]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    log = tmp_path / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen([*map(str, command)], stdout=output, stderr=output, env=environment)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    try:
        wait_for("the page", answers, seconds=120)
        yield address, [word[1:] for word in words]
    finally:
        server.terminate()
        server.wait(20)


def said(seen: Browser, who: str) -> list[list[str]]:
    """What stands in each of the conversations as said by `who` (user or bot)."""
    turns = f"log.querySelectorAll('[data-testid={who}]')"
    return seen.run(
        f"return [...document.querySelectorAll('[role=log]')].map(log => [...{turns}].map(turn => turn.innerText.trim()))"
    )


def test_two_models_answer_beside_each_other_until_the_page_is_cleared(page: tuple[str, list[str]]) -> None:
    address, words = page
    answers = [" ".join([word] * 2) for word in words]
    with browser(free_port()) as seen:
        seen.open(address)
        wait_for("the message box", lambda: seen.run(f"return document.querySelectorAll('{BOX}').length"))
        labels = seen.run("return [...document.querySelectorAll('label')].map(label => label.innerText)")
        assert all(any(label.startswith(f"{word}: ") for label in labels) for word in words), labels
        for turn in (1, 2):  # a second message keeps the first
            seen.type(BOX, f"Message {turn}" + ENTER)
            expected = [[answer] * turn for answer in answers]
            wait_for(f"answers to message {turn}", lambda expected=expected: said(seen, "bot") == expected)
            assert said(seen, "user") == [[f"Message {number}" for number in range(1, turn + 1)]] * 2
        assert seen.run(f"return document.querySelector('{BOX}').value") == ""
        seen.run("[...document.querySelectorAll('button')].find(b => b.innerText == 'Clear').click()")
        wait_for("the page to be cleared", lambda: not any(said(seen, "user")))
