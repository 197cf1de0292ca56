import pytest

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats.hh_rlhf import FORMAT as HH_RLHF
from rlhf_hw.data.template import answer_text, earlier_answer_spans, render_prompt

SYSTEM, ASK, SAID, AGAIN = (
    Message("system", "Be kind."),
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "Hi again"),
)


def test_a_text_prompt_is_used_as_it_is(chatml_tokenizer):
    assert render_prompt(Example("  as {it} is\n", None), chatml_tokenizer) == "  as {it} is\n"
    assert answer_text("as it is", " so", chatml_tokenizer) == " so"


def test_without_a_template_a_chat_is_a_plain_transcript(tiny_tokenizer):
    prompt = (SYSTEM, ASK, SAID, AGAIN)
    assert render_prompt(Example(prompt, None), tiny_tokenizer) == (
        "Be kind.\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Hi again\n\nAssistant:"
    )
    assert answer_text(prompt, "Yes?", tiny_tokenizer) == " Yes?"


def test_a_plain_transcript_is_written_as_it_was_read(tiny_tokenizer):
    transcript = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Hi again\n\nAssistant: Yes?"
    example = HH_RLHF.convert({"chosen": transcript, "rejected": transcript})
    written = render_prompt(example, tiny_tokenizer) + answer_text(example.prompt, "Yes?", tiny_tokenizer)
    assert written == transcript


def test_a_template_writes_the_prompt_up_to_where_the_answer_begins(chatml_tokenizer):
    assert render_prompt(Example((SYSTEM, ASK), None), chatml_tokenizer) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_brings_the_templates_end_of_turn_but_not_the_space_behind_it(
    chatml_tokenizer, instruct_tokenizer
):
    assert answer_text((ASK,), "Hello.", chatml_tokenizer) == "Hello.<|im_end|>"
    assert answer_text((ASK,), "Hello.", instruct_tokenizer) == " Hello. </s>"


@pytest.mark.parametrize("kind", ["tiny_tokenizer", "chatml_tokenizer", "instruct_tokenizer"])
def test_prompt_and_answer_begin_the_conversation_that_goes_on(kind, request):
    """What is learnt in one turn is what a later turn's prompt shows."""
    tokenizer = request.getfixturevalue(kind)
    one_turn = render_prompt(Example((ASK,), None), tokenizer) + answer_text((ASK,), "Hello.", tokenizer)
    assert render_prompt(Example((ASK, SAID, AGAIN), None), tokenizer).startswith(one_turn)


@pytest.mark.parametrize(
    ("kind", "spans"),
    [
        ("tiny_tokenizer", [" Hello.", " assistant"]),
        ("chatml_tokenizer", ["Hello.<|im_end|>", "assistant<|im_end|>"]),
        ("instruct_tokenizer", [" Hello. </s>", " assistant </s>"]),
    ],
)
def test_earlier_answers_are_found_where_they_were_said(kind, spans, request):
    # The second answer is a word that templates write themselves: a search for it would find the wrong place.
    prompt = (ASK, SAID, AGAIN, Message("assistant", "assistant"), ASK)
    tokenizer = request.getfixturevalue(kind)
    text = render_prompt(Example(prompt, None), tokenizer)
    found = earlier_answer_spans(prompt, tokenizer)
    assert [text[start:end] for start, end in found] == spans


def test_an_earlier_answer_that_the_template_rewrites_is_reported_as_not_found(chatml_tokenizer, monkeypatch):
    upper = chatml_tokenizer.chat_template.replace("{{ message.content }}", "{{ message.content | upper }}")
    monkeypatch.setattr(chatml_tokenizer, "chat_template", upper)
    assert earlier_answer_spans((ASK, SAID, AGAIN), chatml_tokenizer) == [None]
