"""An environment on OpenEnv's own server: it counts the turns of each episode, which the WebSocket keeps apart.

Usage: server.py PORT
"""

import sys

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Said(Action):
    message: str


class Told(Observation):
    text: str


class Counting(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self.turns = 0
        self.limit = 0

    def reset(self, seed=None, episode_id=None, limit=1, **others):
        assert seed is not None and episode_id is not None
        self.turns, self.limit = 0, limit
        return Told(text=f"turn 1 of {limit}\n")

    def step(self, action, timeout_s=None, **others):
        self.turns += 1
        return Told(
            text=f"turn {self.turns + 1} of {self.limit}\n", reward=0.25, done=self.turns == self.limit
        )

    @property
    def state(self):
        return State(step_count=self.turns)


if __name__ == "__main__":
    app = create_fastapi_app(Counting, Said, Told, max_concurrent_envs=64)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
