"""Chat templates render as transformers renders them, and hostile ones do no harm."""

from __future__ import annotations

import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from cupola.runtime.errors import RequestError
from cupola.runtime.text.chat_template import ChatTemplate
from tests.systems import needs

MESSAGES = [{"role": "system", "content": "Be <b>brief</b>."}, {"role": "user", "content": "Grüße 😀\n"}]
TEMPLATES = [
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{%- for m in messages %}\n  {% if loop.last %}{{ m | tojson(indent=2) }}{% break %}{% endif %}\n{%- endfor %}",
    "{% macro say(m) %}[{{ m.content | trim }}]{% endmacro %}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ say(m) }}{% endfor %}{{ ns.n }}{{ unknown }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ strftime_now('%Y') }}{% if tools %}tools{% endif %}{{ messages | length }}{{ messages[0].content.split(' ')[-1] }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_same_as_transformers(template):
    (expected,), _ = render_jinja_template([MESSAGES], chat_template=template, add_generation_prompt=True, bos_token="<s>")
    chat = ChatTemplate(template, {"bos_token": "<s>"})
    assert chat.render(MESSAGES) == expected
    chat.close()


HOSTILE = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(300) }}",
    "memory": "{{ 'a' * 10**10 }}",
    "doubling": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "padding": "{{ 'a'.center(10**10) }}",
    "power": "{{ 9**(9**9) }}",
    "output": "{% for a in range(90000) %}{{ 'a' * 10000 }}{% endfor %}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "escape by attr": "{{ (''|attr('__class__')).__mro__ }}",
    "mutation": "{{ messages.append(1) }}",
    "syntax": "{% for %}",
    "refusal": "{{ raise_exception('roles must alternate') }}",
    "include": "{% include '/etc/passwd' %}",
    "type": "{{ 1 + 'a' }}",
}


GREEDY = ("memory", "doubling", "padding")


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs("limits of memory") if name in GREEDY else ()) for name in HOSTILE])
def test_hostile_templates_fail_in_time_and_hurt_nobody(name):
    chat = ChatTemplate(HOSTILE[name], {}, max_seconds=1.5)
    start = time.perf_counter()
    with pytest.raises(RequestError) as caught:
        chat.render(MESSAGES)
    assert time.perf_counter() - start < 60  # some would take for ever
    assert caught.value.field == "messages"
    assert "\n" not in str(caught.value)
    chat.close()


def test_the_next_rendering_is_fine():
    chat = ChatTemplate("{% if messages[0].content == 'loop' %}" + HOSTILE["endless"] + "{% endif %}ok", {}, max_seconds=1.5)
    with pytest.raises(RequestError, match="1.5 s"):
        chat.render([{"role": "user", "content": "loop"}])
    assert chat.render(MESSAGES) == "ok"
    chat.close()
    assert chat.render(MESSAGES) == "ok"
    chat.close()


def test_a_refusal_says_why():
    chat = ChatTemplate(HOSTILE["refusal"], {})
    with pytest.raises(RequestError, match="roles must alternate"):
        chat.render(MESSAGES)
    chat.close()


@pytest.mark.parametrize(
    "messages", [[], "text", [1], [{}], [{"role": 1}], [{"role": "user", "content": 1}], [{"role": "user", "x": float("nan")}]]
)
def test_bad_messages_are_refused(messages):
    chat = ChatTemplate("ok", {})
    with pytest.raises(RequestError, match="messages"):
        chat.render(messages)
    chat.close()


def test_chats_with_tools_get_the_template_for_tools():
    chat = ChatTemplate({"default": "D", "tool_use": "T{{ tools[0].function.name }}", "rag": "{{ documents[0].text }}"}, {})
    assert chat.render(MESSAGES) == "D"
    assert chat.render(MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]) == "Tf"
    assert chat.render(MESSAGES, documents=[{"title": "t", "text": "x"}], name="rag") == "x"
    with pytest.raises(RequestError, match="chat_template: is 'other', and the model has no template of that name"):
        chat.render(MESSAGES, name="other")
    chat.close()


def test_a_model_without_a_default_template_says_so():
    chat = ChatTemplate({"a": "A", "b": "B"}, {})
    with pytest.raises(RequestError, match=r"chat_template: is 'default', and .* \(give one of a, b\)"):
        chat.render(MESSAGES)
    assert chat.render(MESSAGES, name="b") == "B" and chat.default is None
    chat.close()


def test_variables_come_before_tokens_and_after_what_is_fixed():
    chat = ChatTemplate("{{ bos_token }}{{ enable_thinking }}{{ messages | length }}", {"bos_token": "<s>"})
    assert chat.render(MESSAGES, variables={"enable_thinking": False, "bos_token": "B", "messages": []}) == "BFalse2"
    chat.close()


CHATML, TRIMS = TEMPLATES[0], TEMPLATES[0].replace("m['content']", "m['content'] | trim")


@pytest.mark.parametrize("content", ["The answer is", "<", "|", ">", "im", "_", "end", "The answer is ", "```json\n", " Sure", "\n", ""])
def test_an_answer_goes_on_where_it_was_left(content):
    chat = ChatTemplate(CHATML, {})
    messages = [*MESSAGES, {"role": "assistant", "content": content}]
    assert chat.render(messages, continue_final_message=True).endswith(f"<|im_start|>assistant\n{content}")
    if content.strip():  # transformers looks for the text
        (expected,), _ = render_jinja_template([messages], chat_template=CHATML, continue_final_message=True)
        assert chat.render(messages, continue_final_message=True) == expected
    chat.close()


def test_a_template_that_trims_keeps_the_space_at_the_end():
    chat = ChatTemplate(TRIMS, {})
    messages = [*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    assert chat.render([*MESSAGES, {"role": "assistant", "content": " a "}], continue_final_message=True).endswith("assistant\na ")
    parts = ChatTemplate("{% for p in messages[-1].content %}{{ p.text }}!{% endfor %}", {})
    assert parts.render(messages, continue_final_message=True) == "a"
    chat.close()
    parts.close()


@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"role": "assistant", "content": []}])
def test_what_has_no_text_can_not_go_on(message):
    chat = ChatTemplate(CHATML, {})
    with pytest.raises(RequestError, match="continue_final_message: finds no text"):
        chat.render([*MESSAGES, message], continue_final_message=True)
    chat.close()
    chat = ChatTemplate("{{ messages[0].content }}", {})
    with pytest.raises(RequestError, match="does not show the last message"):
        chat.render([*MESSAGES, {"role": "assistant", "content": "a"}], continue_final_message=True)
    chat.close()
