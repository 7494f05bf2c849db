"""Agent frameworks of the package index play the episodes of a ring with loops and tools of their own.

    crates/openai/tests/peer/check.sh        # from anywhere; makes the environment

A framework knows nothing of Sluice: it is given an episode's base URL in the place of OpenAI's, calls the policy, runs the tool that
the policy asks for, and calls again. Who starts it leases the episode and says what it was worth.
"""

import asyncio
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import agents
import openai
import pydantic_ai
import pydantic_ai.exceptions
import pydantic_ai.models.openai
import pydantic_ai.providers.openai

HERE = pathlib.Path(__file__).resolve().parent
# Every response ends as one of these.
OUTCOMES = ("trained", "evaluated", "filtered", "dropped", "failed")
# The policy is taught by schemas of this one; each framework writes its own, of which the template shows the name.
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds two numbers.", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}}


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def of_openai_agents(episode):
    """OpenAI's Agents SDK: its final output, none where the policy did not keep to the tool's form."""
    async def run():
        async with openai.AsyncOpenAI(base_url=episode["base_url"], api_key="none", max_retries=0) as client:
            model = agents.OpenAIChatCompletionsModel(model=episode["model"], openai_client=client)
            agent = agents.Agent(name="adder", model=model, tools=[agents.function_tool(add)])
            result = await agents.Runner.run(agent, input=episode["messages"], max_turns=3)
            return result.final_output

    agents.set_tracing_disabled(True)
    try:
        return asyncio.run(run())
    except (agents.exceptions.MaxTurnsExceeded, agents.exceptions.ModelBehaviorError):
        return None


def of_pydantic_ai(episode):
    """Pydantic AI, in the same way."""
    provider = pydantic_ai.providers.openai.OpenAIProvider(base_url=episode["base_url"], api_key="none")
    model = pydantic_ai.models.openai.OpenAIChatModel(episode["model"], provider=provider)
    agent = pydantic_ai.Agent(model, tools=[add])
    try:
        limits = pydantic_ai.UsageLimits(request_limit=3)
        return agent.run_sync(episode["messages"][-1]["content"], usage_limits=limits).output
    except (pydantic_ai.exceptions.UsageLimitExceeded, pydantic_ai.exceptions.UnexpectedModelBehavior):
        return None


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply) if reply.status == 200 else None


class Agent(threading.Thread):
    """Leases episodes until there are no more, and keeps what their ends say."""

    def __init__(self, server, run):
        super().__init__(daemon=True)
        self.server, self.run_agent, self.ends = server, run, []
        self.problem = None

    def run(self):
        try:
            while self.play():
                pass
        except Exception as problem:  # told by the main thread
            self.problem = problem

    def play(self):
        """Whether there may be another episode."""
        try:
            episode = post(self.server + "/v1/episodes", {"wait_seconds": 30})
        except OSError as refusal:  # the ring is over, or the actor is gone with it
            return isinstance(refusal, urllib.error.HTTPError) and refusal.code == 429
        if episode is None:
            return True
        a, b = (int(number) for number in re.findall(r"\d+", episode["messages"][-1]["content"]))
        reward = 1.0 if self.run_agent(episode) == f"{a + b}." else 0.0
        try:
            self.ends.append(post(f"{self.server}/v1/episodes/{episode['id']}/finish", {"reward": reward}) | {"reward": reward})
        except OSError:  # one that was begun for a batch that is full by now
            return False
        return True


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder):
    """Sums, of which the policy asks the tool for most, and answers some wrongly at once."""
    sums = [(number % 8, number // 8) for number in range(64)]
    asked = [[{"role": "user", "content": f"{a} plus {b} is?"}] for a, b in sums]
    taught, texts = [], []
    for (a, b), prompt in zip(sums, asked):
        call = {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}}
        calls = [{"role": "assistant", "content": None, "tool_calls": [call]},
                 {"role": "tool", "tool_call_id": "call_0", "content": str(a + b)}]
        is_wrong = a % 4 == 3
        answer = {"role": "assistant", "content": f"{a + b + is_wrong}."}
        taught.append({"messages": prompt + (calls if not is_wrong else []) + [answer], "tools": [TOOL]})
        written = f'<tool_call>\n{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}\n</tool_call>'
        texts.append({"text": f"tools: add\nuser: {a} plus {b} is?\nassistant: {written}\ntool: {a + b}\nassistant: {a + b}.\n"})
    write(folder / "demonstrations.jsonl", taught)
    write(folder / "texts.jsonl", texts)
    write(folder / "prompts.jsonl", [{"messages": prompt} for prompt in asked])


def metric(text, name, *labels):
    """The sum of a metric over the series whose labels hold all these parts."""
    lines = [line for line in text.splitlines() if re.split(r"[{ ]", line)[0] == name]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in labels))


def page(addresses):
    return urllib.request.urlopen(f"http://{json.loads(addresses.read_text())['metrics']}/metrics", timeout=10).read().decode()


def check(program, folder, name, run):
    """A whole ring whose episodes a framework plays."""
    output = folder / name
    ring = subprocess.Popen([program, "run", folder / "recipe.toml", "--set", f"output={output}"])
    addresses = output / "ring/actor-0.address.json"
    while not addresses.exists() or "openai" not in json.loads(addresses.read_text()):
        assert ring.poll() is None, "the ring has ended"
        time.sleep(0.2)
    server = "http://" + json.loads(addresses.read_text())["openai"]
    players = [Agent(server, run) for _ in range(2)]
    for player in players:
        player.start()
    accounts = []
    while ring.poll() is None:
        try:
            accounts.append(page(output / "ring/coordinator.address.json"))
        except OSError:
            pass
        time.sleep(0.1)
    assert ring.returncode == 0
    for player in players:
        player.join(timeout=60)
        assert player.problem is None, player.problem
    ends = [end for player in players for end in player.ends]
    called = [end for end in ends if end["calls"] > 1]
    assert len(called) > len(ends) // 3, f"the policy calls the tool in {len(called)} of {len(ends)} episodes"
    for end in ends:
        # Every call goes on from the one before: its tokens are encoded once, and what was drawn is what is trained.
        assert end["status"] == "finished" and end["sequences"] == 1 and end["tokens"] > 0, end
    assert {0.0, 1.0} == {end["reward"] for end in ends}, ends

    steps = [json.loads(line) for line in (output / "ring/steps.jsonl").read_text().splitlines()]
    assert len(steps) == 2, steps
    for step in steps:
        # The learner computes what was recorded, and finds the sampler's log-probs.
        assert step["metrics"]["rollout_approx_kl"] < 1e-6 and step["metrics"]["response_tokens"] > 0, step
    # Of what was issued everything is accounted for, whenever one looks.
    assert accounts and metric(accounts[-1], "rlhf_coordinator_responses_ended_total", 'outcome="trained"') > 0, accounts
    for text in accounts:
        ended = metric(text, "rlhf_coordinator_responses_ended_total")
        in_flight = metric(text, "rlhf_coordinator_responses_in_flight")
        assert metric(text, "rlhf_coordinator_responses_issued_total") == ended + in_flight, text
        assert metric(text, "rlhf_samples_unaccounted") == 0, text
        assert metric(text, "rlhf_coordinator_responses_ended_total", 'outcome="failed"') == 0, text
    print(f"{name}: {len(ends)} episodes, {sum(end['calls'] for end in ends)} calls, {sum(end['tokens'] for end in ends)} tokens; "
          f"each episode is one sequence, and 2 batches were trained on them", flush=True)


def main():
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    shutil.copytree(HERE / "frameworks", folder)
    write_data(folder)
    check(program, folder, "openai-agents", of_openai_agents)
    check(program, folder, "pydantic-ai", of_pydantic_ai)


if __name__ == "__main__":
    main()
