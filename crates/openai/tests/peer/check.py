"""Speaks to `sluice serve` as programs written for OpenAI's API do.

    crates/openai/tests/peer/check.sh        # from anywhere; makes the model and the environment
"""

import asyncio
import json
import subprocess
import sys
import urllib.request

import openai

TEXT = "def add(a, b):"
CHAT = [{"role": "user", "content": "What is 2+2?"}]


def serve(program, model, *options):
    """The server, and the address that it prints."""
    server = subprocess.Popen([program, "serve", "--model", model, "--port", "0", *options], stdout=subprocess.PIPE, text=True)
    return server, server.stdout.readline().strip()


def expect(error, part, ask):
    """`ask` is refused with this class of the client's errors, whose message says `part`."""
    try:
        ask()
    except error as refusal:
        assert part in str(refusal), refusal
    else:
        raise AssertionError(f"{part}: not refused")


def check_lists(client, address):
    assert [model.id for model in client.models.list()] == ["llama_plain"]
    assert client.models.retrieve("llama_plain").object == "model"
    root = address.removesuffix("/v1")
    assert urllib.request.urlopen(root + "/health").status == 200
    metrics = urllib.request.urlopen(root + "/metrics").read().decode()
    assert "rlhf_serve_tokens_generated_total" in metrics, metrics


def check_completions(client):
    def ask(**more):
        return client.completions.create(**({"model": "policy", "prompt": TEXT, "max_tokens": 24, "seed": 7} | more))

    three = ask(n=3, logprobs=2)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len({choice.text for choice in three.choices}) == 3
    assert [choice.text for choice in ask(n=3).choices] == [choice.text for choice in three.choices]
    assert ask(seed=8).choices[0].text != three.choices[0].text
    for choice in three.choices:
        logprobs = choice.logprobs
        count = len(logprobs.tokens)
        assert count == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
        assert all(logprob <= 0 for logprob in logprobs.token_logprobs)
        assert all(2 <= len(top) <= 3 or len(top) == 1 for top in logprobs.top_logprobs)
        assert choice.finish_reason in ("length", "stop")
    usage = three.usage
    drawn = sum(len(choice.logprobs.tokens) for choice in three.choices)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 0 and drawn <= usage.completion_tokens <= drawn + 3

    greedy = [ask(temperature=0, seed=seed).choices[0].text for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    both = ask(prompt=[TEXT, "x = "], temperature=0)
    assert len(both.choices) == 2 and both.choices[0].text == greedy[0]

    whole = three.choices[0].text
    middle = whole[len(whole) // 3:][:3]
    stopped = ask(stop=[middle]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text == whole[:whole.index(middle)], (stopped, whole)

    texts, usages = {0: "", 1: "", 2: ""}, []
    for chunk in ask(n=3, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        if chunk.usage:
            usages.append(chunk.usage)
    assert list(texts.values()) == [choice.text for choice in three.choices]
    assert [usage.completion_tokens for usage in usages] == [three.usage.completion_tokens]


def check_chat(client):
    def ask(**more):
        return client.chat.completions.create(
            **({"model": "policy", "messages": CHAT, "max_completion_tokens": 24, "seed": 3} | more))

    whole = ask(n=2, logprobs=True, top_logprobs=4)
    for choice in whole.choices:
        assert choice.message.role == "assistant" and choice.message.content
        tokens = choice.logprobs.content
        assert tokens and all(len(token.top_logprobs) == 4 and token.logprob <= 0 for token in tokens)
        assert all(token.top_logprobs[0].logprob >= token.top_logprobs[-1].logprob for token in tokens)
    assert ask(max_completion_tokens=None, max_tokens=5).usage.completion_tokens <= 5

    assert whole.system_fingerprint == "weights v0"
    assert all(choice.weight_versions == [{"version": 0, "start": 0, "end": len(choice.logprobs.content)}]
               for choice in whole.choices), whole.choices[0].weight_versions

    texts, reasons = ["", ""], [None, None]
    for chunk in ask(n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def check_agents(client):
    """What an agent's loop sends: tools, a history with calls and their results, template variables, a prefix."""
    tools = [{"type": "function", "function": {
        "name": "python", "description": "Runs code", "parameters": {
            "type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}}}]
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "python", "arguments": '{"code": "print(2+2)"}'}}
    history = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [call]},
               {"role": "tool", "tool_call_id": "abcdefghi", "content": "4"}]

    def ask(messages=CHAT, **more):
        return client.chat.completions.create(
            **({"model": "llama_plain", "messages": messages, "max_tokens": 8, "seed": 3} | more))

    reply = ask(history, tools=tools, tool_choice="auto", parallel_tool_calls=False)
    assert reply.choices[0].message.role == "assistant" and reply.usage.prompt_tokens > ask().usage.prompt_tokens
    assert ask(extra_body={"min_tokens": 8, "ignore_eos": False}).usage.completion_tokens == 8
    assert ask(extra_body={"chat_template_kwargs": {"enable_thinking": False}}).choices
    begun = [*CHAT, {"role": "assistant", "content": "The answer is"}]
    longer, shorter = ask(begun), ask(begun, extra_body={"continue_final_message": True, "add_generation_prompt": False})
    assert shorter.usage.prompt_tokens < longer.usage.prompt_tokens
    expect(openai.BadRequestError, "tool_choice", lambda: ask(tools=tools, tool_choice="required"))
    schema = {"type": "object", "properties": {"four": {"type": "boolean"}}, "required": ["four"], "additionalProperties": False}
    format = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    answer = json.loads(ask(response_format=format, max_tokens=64).choices[0].message.content)
    assert isinstance(answer["four"], bool), answer
    chosen = ask(extra_body={"structured_outputs": {"choice": ["yes", "no"]}}).choices[0].message.content
    assert chosen in ("yes", "no"), chosen
    expect(openai.BadRequestError, "response_format", lambda: ask(response_format={"type": "xml"}))
    expect(openai.BadRequestError, "guided_json", lambda: ask(extra_body={"guided_json": {}}))


def check_refusals(client):
    def ask(**more):
        return lambda: client.completions.create(**({"model": "policy", "prompt": TEXT, "max_tokens": 4} | more))

    expect(openai.NotFoundError, "llama_plain", ask(model="gpt"))
    expect(openai.BadRequestError, "temperature", ask(temperature=-1))
    expect(openai.BadRequestError, "context", ask(prompt=[1] * 5000))
    expect(openai.BadRequestError, "echo", ask(echo=True))
    expect(openai.BadRequestError, "messages", lambda: client.chat.completions.create(model="policy", messages=[]))


async def check_many(address):
    """More requests at a time than there are sequences."""
    client = openai.AsyncOpenAI(base_url=address, api_key="none")
    ask = [client.completions.create(model="policy", prompt=f"{number} + ", max_tokens=8, seed=number) for number in range(100)]
    answers = await asyncio.gather(*ask)
    assert len({answer.id for answer in answers}) == 100


def check_limit(client):
    """One request at a time: another is refused with what the client takes for a rate limit."""
    long = client.completions.create(model="policy", prompt=TEXT, n=512, max_tokens=200, stream=True,
                                     extra_body={"ignore_eos": True})
    next(iter(long))
    expect(openai.RateLimitError, "rate_limit_exceeded", lambda: client.completions.create(model="policy", prompt=TEXT))
    long.close()


def main():
    program, model = sys.argv[1:]
    server, address = serve(program, model)
    try:
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        check_lists(client, address)
        check_completions(client)
        check_chat(client)
        check_agents(client)
        check_refusals(client)
        asyncio.run(check_many(address))
    finally:
        server.terminate()
    assert server.wait(timeout=30) == 0
    server, address = serve(program, model, "--max-concurrent-requests", "1")
    try:
        check_limit(openai.OpenAI(base_url=address, api_key="none", max_retries=0))
    finally:
        server.terminate()
    assert server.wait(timeout=60) == 0
    print(f"openai {openai.__version__}: models, completions, chat, streams, log-probs, stops, seeds, usage, tools, errors and limits")


if __name__ == "__main__":
    main()
