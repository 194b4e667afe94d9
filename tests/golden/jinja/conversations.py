"""Conversations as rows of a file hold them, each a text of JSON with what apply_chat_template is given."""

import json

U, A, S, T = "user", "assistant", "system", "tool"


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def row(*messages, **more):
    return json.dumps({"messages": list(messages), **more}, ensure_ascii=False)


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place,\n\"now\" & <later>.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name — ville, 都市"},
                "days": {"type": "integer", "minimum": 1, "maximum": 12345678901234567890, "default": 1},
                "unit": {"type": ["string", "null"], "enum": ["C", "F", None]},
                "at": {
                    "type": "object",
                    "properties": {"lat": {"type": "number", "default": 1.0}, "10": {"type": "string"}, "2": {"type": "string"}},
                    "required": ["lat"],
                },
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
        "return": {"type": "object", "description": "What it is"},
    },
}
BARE = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}
FLAT = {"name": "flat", "description": "A schema without its wrapping", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}

HI, HELLO = turn(U, "Hi"), turn(A, "Hello!")
CALLS = [
    HI,
    turn(A, "", tool_calls=[call("get_weather", {"city": "Zürich", "days": 2, "at": {"b": 1, "10": "x", "2": "y"}, "ok": True, "none": None})]),
    turn(T, '{"temperature": 21.50, "note": "a\\nb"}', name="get_weather"),
    turn(A, "It is 21.5 °C."),
]

CONVERSATIONS = [
    row(HI),
    row(HI, add_generation_prompt=True),
    row(HI, HELLO),
    row(turn(S, "Be brief."), HI, HELLO),
    row(turn(S, "Be brief."), HI, add_generation_prompt=True),
    row(HI, HELLO, turn(U, "2+3?"), turn(A, "5"), turn(U, "Bye"), turn(A, "Bye, bye.")),
    row(turn(S, "  two\n  lines  \n"), turn(U, "\n\n  ask  \n"), turn(A, "\n    return a + b\n\n"), turn(U, "\tmore\t"), turn(A, "  end ")),
    row(HI, turn(A, "")),
    row(turn(S, ""), HI, HELLO),
    row(turn(U, ""), HELLO, add_generation_prompt=True),
    row(turn(U, [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]), turn(A, [{"type": "text", "text": " of it "}])),
    row(turn(S, [{"type": "text", "text": "Sys"}]), turn(U, [{"type": "image"}, {"type": "text", "text": "what is it?"}]), HELLO),
    row(turn(U, [{"type": "text", "text": "a"}]), add_generation_prompt=True),
    row(HI, HELLO, tools=[WEATHER]),
    row(HI, tools=[WEATHER, BARE], add_generation_prompt=True),
    row(turn(S, "Use tools."), HI, HELLO, tools=[WEATHER, BARE]),
    row(HI, HELLO, tools=[FLAT]),
    row(HI, HELLO, tools=[]),
    row(*CALLS, tools=[WEATHER]),
    row(*CALLS, turn(U, "and tomorrow?"), turn(A, "Rain."), tools=[WEATHER, BARE]),
    row(turn(S, "Sys"), *CALLS[:3], tools=[WEATHER], add_generation_prompt=True),
    row(HI, turn(A, "Both.", tool_calls=[call("now", {}, id="call12345"), call("get_weather", {"city": "Bern"}, id="abcdefghi")]),
        turn(T, "12:00", tool_call_id="call12345"), turn(T, "sun", tool_call_id="abcdefghi"), turn(A, "Noon, sun."), tools=[BARE, WEATHER]),
    row(HI, turn(A, None, tool_calls=[call("now", {})]), turn(T, "12:00"), turn(A, "Noon.")),
    row(HI, turn(A, "", tool_calls=[call("get_weather", '{"city": "Oslo", "id": 76869196581463654}')]), turn(T, "ok"), HELLO),
    row(HI, {"role": A, "tool_calls": [call("now", {})]}, turn(T, "12:00"), HELLO),
    row(HI, turn(A, "4", reasoning_content="2 and 2")),
    row(HI, turn(A, "4", reasoning_content="\n  plan: indent\n\n", thinking="\n  plan: indent\n\n"), turn(U, "so?"), turn(A, "\n    5", reasoning_content="more\n")),
    row(HI, turn(A, "<think>\nhm\n</think>\n\n4"), turn(U, "so?"), turn(A, "<think>\n  5 it is\n</think>\n\n  5")),
    row(HI, turn(A, "4", thinking="as said"), turn(U, "on"), add_generation_prompt=True),
    row(HI, turn(A, "<think></think>only"), turn(U, "</think> in a question"), turn(A, "a</think>b</think>c")),
    row(HI, turn(A, "", reasoning_content="call it", tool_calls=[call("now", {})]), turn(T, "12"), turn(A, "12", reasoning_content="told"), tools=[BARE]),
    row(HI, HELLO, enable_thinking=False, add_generation_prompt=True),
    row(HI, HELLO, turn(U, "on"), enable_thinking=True, add_generation_prompt=True),
    row(HI, HELLO, reasoning_effort="high", model_identity="You are a test.", builtin_tools=["browser", "python"], add_generation_prompt=True),
    row(turn(U, "Hi", name=None, tool_calls=None), turn(A, "Hello!", name=None, tool_calls=None, reasoning_content=None)),
    row(HI, {"role": A, "content": None}),
    row({"role": U}, HELLO),
    '{"messages": [{"role": "user", "content": "n"}, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": '
    '{"name": "f", "arguments": {"id": 12345678901234567890, "post": 76869196581463654, "odd": 9007199254740993, "one": 1.0, "small": 1e-7, '
    '"big": 1e22, "half": 0.5, "neg": -0.0, "zero": 0, "exp": 1E3, "list": [1.0, 2, 100000000000000000000, true, null], "10": "x", "2": "y", "b": 1}}}]}, '
    '{"role": "tool", "content": "done"}, {"role": "assistant", "content": "ok"}]}',
    '{"messages": [{"role": "user", "content": {"2001": 1.0, "1999": 76869196581463654}}, {"role": "assistant", "content": "ok"}]}',
    row(HI, turn(A, "", tool_calls=[call("f", {"text": 'quote " back \\ tab\t nl\n nul\u0001 del\u007f ls\u2028 <b>&\'', "ключ": "значение", "e": "🙂"})])),
    row(HI, turn(A, "", tool_calls=[call("f", {"deep": [{"a": [{"b": {"c": []}}, {}]}, "s"], "empty": {}, "n": -1, "t": True})]), turn(T, {"r": [1, 2]})),
    row(turn(S, "Système ñ 系统 🙂"), turn(U, "naïve 👩‍👩‍👧 e\u0301 \u00a0nbsp\u00a0"), turn(A, "\u00a0\u3000wide\u3000 \ufeffbom\ufeff \u0085nel\u0085")),
    row(turn(U, "CR\r\nLF\r\n"), turn(A, "a\r\nb\r")),
    row(turn(U, "<|im_start|>system\n{{ x }} {% raw %} </s> [INST]"), turn(A, "[/INST] <|im_end|>")),
    row(HELLO, HI),
    row(HI, HI, HELLO),
    row(HI, turn(S, "in the middle"), HELLO),
    row(turn(S, "one"), turn(S, "two"), HI, HELLO),
    row(turn("developer", "Be a dev."), HI, HELLO),
    row(turn("narrator", "Once"), HI, HELLO),
    row(HI, turn("ipython", "out"), HELLO, date_string="1 Jan 2020"),
    row(turn(U, True), turn(A, 5)),
    row(turn(S, "only the system")),
    row(),
    row(HI, turn(A, "prefix", prefix=True), continue_final_message=True),
    row(HI, HELLO, documents=[{"title": "T", "text": "words"}, {"title": "U", "text": "more"}], add_generation_prompt=True),
    row(HI, turn(A, "same", tool_plan="I plan", tool_calls=[call("now", {}, id="0")]), turn(T, [{"type": "text", "text": "12"}], tool_call_id="0"), HELLO, tools=[BARE]),
    row(turn(U, "/no_think Hi"), HELLO, turn(U, "/think so"), add_generation_prompt=True),
    row(turn(S, "You are X.\n\n# Tools\n"), HI, HELLO, xml_tools=["def f(): pass"], python_tools=["def g(): pass"], tools=[BARE]),
]
