"""Renders templates/*.jinja with transformers' apply_chat_template and writes cases.json.

    python3 -m venv VENV && VENV/bin/pip install transformers jinja2
    VENV/bin/python make.py

The templates are written for these tests, in the shapes that model repositories use. A case is a template, a request
and the text, or the fact that rendering fails. The clock stands still at CLOCK.
"""

import datetime
import json
import pathlib

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
CLOCK = 1_735_905_600  # 2025-01-03 12:00 UTC
SPECIAL = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>")


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(CLOCK, tz or datetime.timezone.utc)


USER = dict(role="user", content="What is  2+2?\n")
ASSISTANT = dict(role="assistant", content=" <think>\neasy\n</think>\n\nIt is 4, I think. ")
SYSTEM = dict(role="system", content="Be terse & \"exact\". ")
AGAIN = dict(role="user", content="Why?\r\n\n\nExplain like I'm five — ünïcode 你好 \U0001f600 <b>")
TOOLS = [
    dict(type="function", function=dict(
        name="get_weather", description="Current weather\nin a city", parameters=dict(
            type="object", properties=dict(
                city=dict(type="string", description="City & country, e.g. \"Paris, FR\" "),
                unit=dict(type="string", enum=["celsius", "fahrenheit"], description="<unit>"),
                days=dict(type="array", items=dict(type="integer"), description="which days"),
                limit=dict(type=["integer", "null"], description="at most")),
            required=["city"]))),
    dict(type="function", function=dict(
        name="stop", description="Stop", parameters=dict(type="object", properties={}, required=[]))),
]
CALL = dict(role="assistant", content="", tool_calls=[dict(
    id="abcdef123", type="function", function=dict(name="get_weather", arguments=dict(
        city="Zürich", days=[1, 2], limit=None, exact=True, scale=1.0, tiny=1e-7)))])
CALL_NONE = dict(CALL, content=None)
CALLS = dict(CALL, tool_calls=CALL["tool_calls"] + [dict(
    id="123456789", type="function", function=dict(name="stop", arguments={}))])
CALL_TEXT = dict(role="assistant", content="One moment.", tool_calls=[dict(
    id="abcdef123", type="function", function=dict(name="get_weather", arguments="{\"city\": \"Bern\"}"))])
RESULT = dict(role="tool", content="{\"temperature\": 21.5}", tool_call_id="abcdef123", name="get_weather")
PARTS = dict(role="user", content=[dict(type="image"), dict(type="text", text=" What is this? ")])
REASONED = dict(role="assistant", content="\n42", reasoning_content="\nlong thought\n")
DOCUMENTS = [dict(title="One", text="First text."), dict(title="Two", text="Second\ntext.")]

REQUESTS = {
    "user": dict(messages=[USER]),
    "user_prompt": dict(messages=[USER], add_generation_prompt=True),
    "system_prompt": dict(messages=[SYSTEM, USER], add_generation_prompt=True),
    "turns": dict(messages=[USER, ASSISTANT, AGAIN], add_generation_prompt=True),
    "system_turns_closed": dict(messages=[SYSTEM, USER, ASSISTANT, AGAIN, ASSISTANT]),
    "not_alternating": dict(messages=[USER, USER], add_generation_prompt=True),
    "tools": dict(messages=[SYSTEM, USER], tools=TOOLS, add_generation_prompt=True),
    "tool_call": dict(messages=[USER, CALL, RESULT], tools=TOOLS, add_generation_prompt=True),
    "tool_call_none": dict(messages=[USER, CALL_NONE, RESULT, ASSISTANT, AGAIN], tools=TOOLS),
    "tool_calls": dict(messages=[SYSTEM, USER, CALLS, RESULT, RESULT], tools=TOOLS, add_generation_prompt=True),
    "tool_call_text": dict(messages=[USER, CALL_TEXT, RESULT], tools=TOOLS, add_generation_prompt=True),
    "parts": dict(messages=[PARTS], add_generation_prompt=True),
    "reasoned": dict(messages=[USER, REASONED]),
    "documents": dict(messages=[USER], documents=DOCUMENTS, add_generation_prompt=True),
    "variables": dict(messages=[USER], add_generation_prompt=True, enable_thinking=False,
                      controls=dict(citations=True, length="short"), tools_in_user_message=False, tools=TOOLS,
                      date_string="1 May 2020", documents=DOCUMENTS),
    "continued": dict(messages=[USER, dict(role="assistant", content="It is")], continue_final_message=True),
    "continued_space": dict(messages=[SYSTEM, USER, ASSISTANT, AGAIN, dict(role="assistant", content=" Since\n ")],
                            continue_final_message=True),
    "continued_user": dict(messages=[USER], continue_final_message=True),
}


def main():
    chat_template_utils.datetime = Clock
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0}, "<s>")), **SPECIAL)
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        for name, request in REQUESTS.items():
            case = dict(template=path.stem, request=name)
            try:
                case["text"] = tokenizer.apply_chat_template(
                    conversation=request["messages"], chat_template=path.read_text(), tokenize=False,
                    **{key: value for key, value in request.items() if key != "messages"})
            except Exception as error:
                case["error"] = f"{type(error).__name__}: {error}"
            cases.append(case)
        rendered = [case for case in cases if case["template"] == path.stem]
        failed = [case["request"] for case in rendered if "error" in case]
        print(f"{path.stem}: {len(rendered) - len(failed)} texts, fails on {failed}")
    content = dict(clock=CLOCK, special=SPECIAL, requests=REQUESTS, cases=cases)
    (HERE / "cases.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
