"""The checks of check_serve.py about functions that models call, and about texts of a form."""

import json
import re
from collections.abc import Callable
from typing import Literal

import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

from serving import MODEL, Server, Setup, check_refusal, compile_bundle, demand, demand_form, equal, events

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "God"}], "temperature": 0, "max_tokens": 160}
# A template that has calls written as Llama 3 writes them.
BARE = """{% if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with {"name": ..., "parameters": ...}.
{% endif %}{% for m in messages %}{{ m['content'] }}
{% endfor %}{% if add_generation_prompt %}And{% endif %}"""
# A template that names functions, without a form of calls that is known.
OTHER = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{{ messages[-1]['content'] }}"


class Find(BaseModel):
    """Finds a verse"""

    # Other fields would let the model go on as long as it likes.
    model_config = ConfigDict(extra="forbid")
    book: Literal["Genesis", "Exodus"]
    verse: int = Field(ge=1, le=50)


FIND = openai.pydantic_function_tool(Find, name="find")
NOTHING = {"type": "object", "additionalProperties": False}
STOP = {"type": "function", "function": {"name": "stop", "parameters": NOTHING}}
NAMED = {"type": "function", "function": {"name": "find"}}


def check_arguments(arguments: str) -> dict:
    return Find.model_validate(json.loads(arguments)).model_dump()


def streamed_call(server: Server, **fields: object) -> tuple[str, str, str]:
    """Name, arguments and finish_reason of the one call of a stream."""
    parts = list(server.client().chat.completions.create(**ASKED, **fields, stream=True))
    calls = [call for part in parts for call in part.choices[0].delta.tool_calls or []]
    equal("indexes", [call.index for call in calls], [0])
    demand(bool(calls[0].id), "the call has no id")
    equal("text beside the call", "".join(part.choices[0].delta.content or "" for part in parts), "")
    return calls[0].function.name, calls[0].function.arguments, parts[-1].choices[0].finish_reason


def check_demanded_calls(server: Server) -> str:
    arguments = None
    for tools, choice in (([FIND], "required"), ([STOP, FIND], NAMED)):
        fields = {"tools": tools, "tool_choice": choice}
        whole = server.client().chat.completions.create(**ASKED, **fields).choices[0]
        equal("finish_reason", whole.finish_reason, "tool_calls")
        equal("content", whole.message.content, None)
        equal("calls", [call.function.name for call in whole.message.tool_calls], ["find"])
        arguments = whole.message.tool_calls[0].function.arguments
        check_arguments(arguments)
        equal("streamed", streamed_call(server, **fields), ("find", arguments, "tool_calls"))
    fields = {"tools": [FIND, STOP], "tool_choice": "required", "temperature": 1, "seed": 5}
    drawn = server.client().chat.completions.create(**{**ASKED, **fields}, n=3)
    for choice in drawn.choices:
        for call in choice.message.tool_calls:
            demand(call.function.name == "stop" or check_arguments(call.function.arguments), "no call")
    ids = [call.id for choice in drawn.choices for call in choice.message.tool_calls]
    equal("different ids", (len(ids), len(set(ids))), (3, 3))
    parsed = server.client().chat.completions.parse(**ASKED, tools=[FIND], tool_choice="required")
    demand(isinstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, Find), "not parsed")
    return str(arguments)


def check_free_calls(server: Server) -> str:
    """With `auto` the model's text decides: a regular expression stands for models that call."""
    client = server.client()
    plain = client.chat.completions.create(**ASKED)
    none = client.chat.completions.create(**ASKED, tools=[FIND], tool_choice="none")
    equal("text without functions", none.choices[0].message.content, plain.choices[0].message.content)
    equal("prompt without functions", none.usage.prompt_tokens, plain.usage.prompt_tokens)
    auto = client.chat.completions.create(**ASKED, tools=[FIND], tool_choice="auto")
    equal("calls", auto.choices[0].message.tool_calls, None)
    demand(auto.usage.prompt_tokens > plain.usage.prompt_tokens, "the template isn't given the functions")
    call = '<tool_call>\n{"name": "find", "arguments": {"verse": %s}}\n</tool_call>'
    for text, content, verses in [
        (call % 5, None, [5]),
        ("Well. " + call % 5 + "\n" + call % 6, "Well. ", [5, 6]),
        ('Well. <tool_call>{"name": "find"}</tool_call>', None, []),
        ("<tool_call", None, []),
    ]:
        fields = {"tools": [FIND], "extra_body": {"structured_outputs": {"regex": re.escape(text)}}}
        choice = client.chat.completions.create(**ASKED, **fields).choices[0]
        calls = choice.message.tool_calls or []
        equal("content", choice.message.content, content if calls else text)
        equal("calls", [json.loads(call.function.arguments)["verse"] for call in calls], verses)
        equal("finish_reason", choice.finish_reason, "tool_calls" if calls else "stop")
        parts = list(client.chat.completions.create(**ASKED, **fields, stream=True))
        told = [part.choices[0].delta for part in parts]
        equal("content streamed", "".join(delta.content or "" for delta in told), choice.message.content or "")
        streamed = [call for delta in told for call in delta.tool_calls or []]
        equal("indexes", [call.index for call in streamed], list(range(len(verses))))
        told = [(call.function.name, call.function.arguments) for call in streamed]
        equal("calls streamed", told, [(call.function.name, call.function.arguments) for call in calls])
        equal("finish_reason streamed", parts[-1].choices[0].finish_reason, choice.finish_reason)
    return f"{plain.usage.prompt_tokens} tokens without functions, {auto.usage.prompt_tokens} with"


def check_round_trip(server: Server) -> str:
    """A call and what it brought, in the messages of the next request."""
    client = server.client()
    called = client.chat.completions.create(**ASKED, tools=[FIND], tool_choice="required").choices[0].message
    call = called.tool_calls[0]
    turns = [*ASKED["messages"], called, {"role": "tool", "tool_call_id": call.id, "content": "the heaven"}]
    told = client.chat.completions.create(**{**ASKED, "messages": turns, "max_tokens": 8}, tools=[FIND])
    equal("role", told.choices[0].message.role, "assistant")
    plain = client.chat.completions.create(**{**ASKED, "messages": turns, "max_tokens": 8})
    arguments = json.dumps(json.loads(call.function.arguments))
    rendered = f'God\n<tool_call>\n{{"name": "find", "arguments": {arguments}}}\n</tool_call>\nthe heaven\nAnd'
    equal("the text of the rendered chat", plain.choices[0].message.content, server.text(rendered, max_tokens=8))
    return f"{told.choices[0].message.content!r}"


def check_forms(server: Server) -> str:
    client = server.client()
    form = {"type": "json_schema", "json_schema": {"name": "find", "schema": Find.model_json_schema(), "strict": True}}
    text = client.chat.completions.create(**ASKED, response_format=form).choices[0].message.content
    check_arguments(text)
    parts = client.chat.completions.create(**ASKED, response_format=form, stream=True)
    equal("streamed", "".join(part.choices[0].delta.content or "" for part in parts), text)
    parsed = client.chat.completions.parse(**ASKED, response_format=Find).choices[0].message.parsed
    demand(isinstance(parsed, Find), f"{parsed!r} is no Find")
    # An object may be as long as the model likes: it is one, or the beginning of one.
    choice = client.chat.completions.create(**ASKED, response_format={"type": "json_object"}).choices[0]
    demand(choice.message.content.startswith("{"), choice.message.content)
    demand(choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict), "no object")
    for structured, pattern in (
        ({"json": Find.model_json_schema()}, r"\{.*\}"),
        ({"regex": "[0-9]{3}-[0-9]{4}"}, "[0-9]{3}-[0-9]{4}"),
        ({"grammar": 'start: "Call " NUMBER ("," NUMBER)?\nNUMBER: /[0-9]{3}/'}, "Call [0-9]{3}(,[0-9]{3})?"),
    ):
        extra = {"structured_outputs": structured}
        chat = client.chat.completions.create(**ASKED, extra_body=extra).choices[0]
        asked = {"model": MODEL, "prompt": "God", "max_tokens": 100, "extra_body": extra}
        greedy = client.completions.create(**asked, temperature=0).choices[0]
        drawn = client.completions.create(**asked, temperature=1, seed=3).choices[0]
        for said, reason in (
            (chat.message.content, chat.finish_reason),
            (greedy.text, greedy.finish_reason),
            (drawn.text, drawn.finish_reason),
        ):
            demand(re.fullmatch(pattern, said) is not None, f"{structured}: {said!r}")
            equal("finish_reason", reason, "stop")
            if "json" in structured:
                check_arguments(said)
    return text


def check_langchain_forms(server: Server) -> str:
    options = {"model": MODEL, "base_url": f"{server.base}/v1", "api_key": "none", "temperature": 0, "max_tokens": 100}
    chat = ChatOpenAI(**options, max_retries=0)
    for method in ("json_schema", "function_calling"):
        found = chat.with_structured_output(Find, method=method).invoke("God")
        demand(isinstance(found, Find), f"{method}: {found!r} is no Find")
    for choice in ("any", "Find"):
        bound = chat.bind_tools([Find], tool_choice=choice)
        whole = bound.invoke("God")
        equal("calls", [call["name"] for call in whole.tool_calls], ["Find"])
        Find.model_validate(whole.tool_calls[0]["args"])
        parts = list(bound.stream("God"))
        equal("streamed", sum(parts[1:], parts[0]).tool_calls[0]["args"], whole.tool_calls[0]["args"])
    call = {"name": "Find", "args": {"book": "Genesis", "verse": 1}, "id": "1"}
    turns = [HumanMessage("God"), AIMessage("", tool_calls=[call]), ToolMessage("the heaven", tool_call_id="1")]
    demand(chat.bind_tools([Find]).invoke(turns).text != "", "an empty text")
    return str(whole.tool_calls[0]["args"])


def check_templates(setup: Setup) -> str:
    """Calls as Llama 3 writes them, and templates whose form isn't known."""
    folder = setup.folder / "bare"
    folder.mkdir()
    with compile_bundle(setup.dlc, folder, BARE).serve() as server:
        for fields in (
            {"tools": [FIND], "tool_choice": "required"},
            {"tools": [FIND, STOP], "tool_choice": NAMED},
            {
                "tools": [FIND],
                "extra_body": {
                    "structured_outputs": {
                        "regex": r'\{"name": "find", "parameters": \{"book": "Exodus", "verse": [1-9]\}\}'
                    }
                },
            },
        ):
            whole = server.client().chat.completions.create(**ASKED, **fields).choices[0]
            equal("finish_reason", whole.finish_reason, "tool_calls")
            equal("content", whole.message.content, None)
            call = whole.message.tool_calls[0].function
            check_arguments(call.arguments)
            equal("streamed", streamed_call(server, **fields), ("find", call.arguments, "tool_calls"))
        body = {**ASKED, "tools": [FIND], "structured_outputs": {"regex": '\\{"name": 5\\}'}}
        choice = json.loads(server.post("/v1/chat/completions", **body)[2])["choices"][0]
        equal("what is no call", choice["message"]["content"], '{"name": 5}')
        parts = events(server.post("/v1/chat/completions", **body, stream=True)[2])
        for part in parts:
            demand_form(part, "ChatChunk")
        streamed = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
        equal("what is no call, streamed", streamed, '{"name": 5}')
    folder = setup.folder / "other"
    folder.mkdir()
    with compile_bundle(setup.dlc, folder, OTHER).serve() as server:
        for choice in ("auto", "required", NAMED):
            status, _, text = server.post("/v1/chat/completions", **ASKED, tools=[FIND], tool_choice=choice)
            check_refusal(status, text, 400, "tools")
        equal("none", server.post("/v1/chat/completions", **ASKED, tools=[FIND], tool_choice="none")[0], 200)
    return "2 templates"


SHARED: dict[str, Callable[[Server], str]] = {
    "demanded calls": check_demanded_calls,
    "free calls": check_free_calls,
    "round trip": check_round_trip,
    "forms": check_forms,
    "langchain's forms": check_langchain_forms,
}
APART: dict[str, Callable[[Setup], str]] = {"templates": check_templates}
