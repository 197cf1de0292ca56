"""Two ways to write an answer that transformers 5 has no more: diverse beam search and contrastive search.

Both run the model over the whole text at every step, without a cache of keys and values: slower than `generate()`, but
the same on every version and device, and the shapes stay the same where they must. For looking at a few answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rlhf_hw.data.collate import pad_rows
from rlhf_hw.models.positions import Positions, SelectedLogits, every_position, logits_at

Ids = list[int]


class LastPositions:
    """Logits and hidden states at the last token of texts: one forward pass, right padded.

    `pad_length`: longest text in tokens → width.
    """

    def __init__(self, model: Any, pad_token_id: int, pad_length: Callable[[int], int]) -> None:
        self.model = model
        self.pad_token_id = pad_token_id
        self.pad_length = pad_length

    def __call__(self, texts: Sequence[Ids]) -> SelectedLogits:
        """`logits` [N, V] and `hidden` [N, H] at the last token of each of N texts, fp32 logits."""
        ids, mask = pad_rows(texts, self.pad_token_id, self.pad_length)
        where = Positions(torch.arange(len(texts)), torch.tensor([len(text) - 1 for text in texts]))
        return self._run(ids, mask, where)

    def everywhere(self, text: Ids) -> SelectedLogits:
        """The same at each of the T tokens of one text."""
        ids, mask = pad_rows([text], self.pad_token_id, self.pad_length)
        found = self._run(ids, mask, every_position(ids.shape[0], ids.shape[1], torch.device("cpu")))
        return SelectedLogits(found.logits[: len(text)], found.hidden[: len(text)])

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, where: Positions) -> SelectedLogits:
        device = self.model.device
        there = Positions(where.rows.to(device), where.columns.to(device))
        found = logits_at(self.model, there, input_ids=ids.to(device), attention_mask=mask.to(device))
        return SelectedLogits(found.logits.float().cpu(), found.hidden.float().cpu())


@dataclass
class _Group:
    """Beams that grow together: open ones as (score, text), and the best finished ones as (score a token, text)."""

    size: int
    beams: list[tuple[float, Ids]]
    finished: list[tuple[float, Ids]] = field(default_factory=list)
    done: bool = False

    def finish(self, total: float, text: Ids, length: int) -> None:
        """Keep a text of `length` new tokens if it is among the `size` best by its score a token."""
        self.finished.append((total / length, text))
        self.finished.sort(key=lambda scored: -scored[0])
        del self.finished[self.size :]

    def settle(self, best_total: float, length: int) -> None:
        """Done once no open beam can become better than the worst finished one."""
        full = len(self.finished) == self.size
        self.done = full and self.finished[-1][0] >= best_total / length


@torch.no_grad()
def diverse_beam_search(
    at: LastPositions,
    prompt: Ids,
    *,
    beams: int,
    groups: int,
    diversity_penalty: float,
    max_new_tokens: int,
    end_ids: Collection[int],
    answers: int = 1,
) -> list[Ids]:
    """The `answers` best continuations of `prompt`, best first: `beams` beams in `groups` groups, of which each is charged
    `diversity_penalty` for every token that an earlier group has chosen at the same step.

    Vijayakumar et al. 2016 (arXiv:1610.02424, Hamming diversity); scores are means a token, as in transformers.
    """
    size = beams // groups
    start: list[tuple[float, Ids]] = [(0.0, prompt), *[(-1e9, prompt)] * (size - 1)]
    all_groups = [_Group(size, list(start)) for _ in range(groups)]
    length = 0
    while length < max_new_tokens and not all(group.done for group in all_groups):
        length += 1
        logits = at([text for group in all_groups for _, text in group.beams]).logits
        log_probs = torch.log_softmax(logits, dim=-1)
        chosen = torch.zeros(log_probs.shape[1])
        for number, group in enumerate(all_groups):
            if not group.done:
                rows = log_probs[number * size : (number + 1) * size] - diversity_penalty * chosen
                _grow(group, rows, end_ids, length)
                for _, text in group.beams:
                    chosen[text[-1]] += 1
    for group in all_groups:
        if not group.done:
            for total, text in group.beams:
                group.finish(total, text, length)
    best = sorted(
        (scored for group in all_groups for scored in group.finished), key=lambda scored: -scored[0]
    )
    return [text[len(prompt) :] for _, text in best[:answers]]


def _grow(group: _Group, log_probs: torch.Tensor, end_ids: Collection[int], length: int) -> None:
    """Give each beam of a group its next token; `log_probs` [size, V], `length` new tokens then."""
    totals = log_probs + torch.tensor([total for total, _ in group.beams])[:, None]
    # enough candidates that `size` of them go on, even if every end token is among the best of every beam
    count = max(2, 1 + len(end_ids)) * group.size
    values, places = totals.flatten().topk(min(count, totals.numel()))
    going_on: list[tuple[float, Ids]] = []
    for rank, (total, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
        beam, token = divmod(place, totals.shape[1])
        text = [*group.beams[beam][1], token]
        if token in end_ids:
            if rank < group.size:
                group.finish(total, text, length)
        elif len(going_on) < group.size:
            going_on.append((total, text))
    group.beams = going_on
    group.settle(float(values[0]), length)


@torch.no_grad()
def contrastive_search(
    at: LastPositions,
    prompt: Ids,
    *,
    top_k: int,
    penalty_alpha: float,
    max_new_tokens: int,
    end_ids: Collection[int],
) -> Ids:
    """A continuation of `prompt`: at each step that of the `top_k` likeliest tokens with the highest
    (1 - α) · probability - α · (largest cosine similarity of its hidden state with those before it).

    Su et al. 2022 (arXiv:2202.06417), equation 5.
    """
    found = at.everywhere(prompt)
    hidden, logits = torch.nn.functional.normalize(found.hidden, dim=-1), found.logits[-1]
    text = list(prompt)
    for _ in range(max_new_tokens):
        probabilities, tokens = torch.softmax(logits, dim=-1).topk(top_k)
        candidates = at([[*text, token] for token in tokens.tolist()])
        states = torch.nn.functional.normalize(candidates.hidden, dim=-1)
        likeness = (states @ hidden.T).max(dim=1).values
        best = int(((1 - penalty_alpha) * probabilities - penalty_alpha * likeness).argmax())
        text.append(int(tokens[best]))
        if text[-1] in end_ids:
            break
        hidden, logits = torch.cat([hidden, states[best : best + 1]]), candidates.logits[best]
    return text[len(prompt) :]
