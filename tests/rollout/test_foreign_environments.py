"""Environments of the packages ``verifiers`` and ``openenv`` as ours: against those packages where they are installed,
and OpenEnv's protocol against a server of this process everywhere."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maxent_grpo.config.loading import resolve
from maxent_grpo.data.sources import load_rows
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.http import Fault, fetch
from maxent_grpo.rewards.registry import CallContext, Caller, RewardOptions, load_rewards
from maxent_grpo.rollout.environment import environment_reward, load_environment
from runs import train

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def at(episode: int) -> Any:
    """What an environment reads of a prompt."""
    return SimpleNamespace(index=0, columns={"episode": episode})


def number_of(seed: int) -> int:
    return (3 * seed + 4) % 10


class Protocol:
    """OpenEnv's messages by hand: the environment of ``openenv_server``."""

    def __call__(self, client: Any) -> None:
        number = 0
        for text in client:
            message = json.loads(text)
            kind, data = message["type"], message.get("data") or {}
            if kind == "close":
                return
            result = {"observation": {"hint": "guess"}, "reward": None, "done": False}
            if kind == "reset":
                number = number_of(data["seed"])
            elif not isinstance(data.get("number"), int):
                error = {"message": "number: not an integer", "code": "VALIDATION_ERROR"}
                client.send(json.dumps({"type": "error", "data": error}))
                continue
            elif data["number"] == 99:
                client.send(
                    json.dumps({"type": "error", "data": {"message": "bang", "code": "EXECUTION_ERROR"}})
                )
                continue
            else:
                right = data["number"] == number
                hint = "right" if right else "higher" if data["number"] < number else "lower"
                result = {"observation": {"hint": hint}, "reward": 1.0 if right else -0.1, "done": right}
            client.send(json.dumps({"type": "observation", "data": result}))


@pytest.fixture
def by_hand() -> Iterator[str]:
    schema = {"properties": {"number": {"type": "integer"}}, "required": ["number"]}

    def other_paths(connection: Any, request: Any) -> Any:
        return connection.respond(200, json.dumps({"action": schema})) if request.path == "/schema" else None

    serving = pytest.importorskip("websockets.sync.server", reason="websockets is not installed")
    with serving.serve(Protocol(), "127.0.0.1", 0, process_request=other_paths) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"openenv:http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def by_package() -> Iterator[str]:
    pytest.importorskip("openenv", reason="openenv is not installed (pip install openenv)")
    port = free_port()
    with subprocess.Popen([sys.executable, str(HERE / "openenv_server.py"), str(port)]) as process:
        try:
            for _ in range(300):
                try:
                    fetch(f"http://127.0.0.1:{port}/schema", timeout=1)
                    break
                except Fault:
                    if process.poll() is not None:
                        pytest.fail("the server ended")
                    threading.Event().wait(0.2)
            yield f"openenv:http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.parametrize("kind", ["by_hand", pytest.param("by_package", marks=pytest.mark.slow)])
def test_an_openenv_server_answers_and_scores(kind: str, request: pytest.FixtureRequest) -> None:
    name = request.getfixturevalue(kind)
    rows = load_rows(name, config="size=2")
    assert rows["episode"] == [0, 1]
    first = json.loads(rows[1]["prompt"][0]["content"])
    assert first["action_schema"]["required"] == ["number"]
    environment = load_environment(name)

    def hint(*turns: str) -> str | None:
        said = environment.reply(at(1), turns)
        return None if said is None else said["content"]

    assert json.loads(hint('{"number": 5}') or "")["observation"]["hint"] == "higher"
    assert json.loads(hint('{"number": 5}', '<think>8?</think>```json\n{"number": 8}\n```') or "")["observation"][
        "hint"
    ] == "lower"  # fmt: skip
    assert hint('{"number": 5}', '{"number": 7}') is None
    assert "is no action" in str(hint("seven"))
    assert "is no action" in str(hint('{"number": "seven"}'))
    turns = [['{"number": 5}', '{"number": 7}'], ["seven"], ['{"number": 7}'], ['{"number": 1}'] * 2]
    scores = environment_reward(name)(["…"] * 4, turns, episode=[1] * 4)
    assert scores == pytest.approx([0.9, 0.0, 1.0, -0.2])


def test_a_failing_episode_loses_its_score_alone_and_a_missing_server_is_named(by_hand: str) -> None:
    reward = load_rewards(["environment"], None, RewardOptions({"environment": by_hand}))[0]
    arguments = {
        "prompts": ["", ""], "completions": ["", ""], "episode": [0, 0],
        "turns": [['{"number": 99}'], ['{"number": 4}']],
    }  # fmt: skip
    found = Caller().scores(reward, arguments, CallContext())
    assert found.values[1] == 1.0
    assert "bang (EXECUTION_ERROR)" in str(found.errors[0])
    with pytest.raises(RunError, match="bang"):
        load_environment(by_hand).reply(at(0), ['{"number": 99}'])
    with pytest.raises(UsageError, match="set dataset_name=openenv:"):
        load_environment(by_hand).reply(SimpleNamespace(index=0, columns={}), ["1"])
    with pytest.raises(UsageError, match="no OpenEnv server answers there"):
        load_rows(f"openenv:http://127.0.0.1:{free_port()}")
    with pytest.raises(RunError, match="is the server running"):
        load_environment(f"openenv:http://127.0.0.1:{free_port()}").reply(at(0), ["1"])
    with pytest.raises(UsageError, match=r"dataset_config: 'seeds=2' is no option of .* known: size=N"):
        load_rows(by_hand, config="seeds=2")


def test_a_run_learns_in_it(by_hand: str, policy_dir: Path, tmp_path: Path) -> None:
    settings = {
        "model_name_or_path": str(policy_dir), "dataset_name": by_hand, "dataset_config": "size=2",
        "environment": by_hand, "max_turns": 2, "reward_funcs": ["environment"], "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 8, "max_steps": 1,
        "use_cpu": True, "disable_tqdm": True, "force_custom_loop": True,
    }  # fmt: skip
    result = train(resolve("train-baseline", None, {"flat": settings}, environ={}))
    assert result.metrics["train/rewards/environment/mean"] == 0.0  # a random policy writes no action
    assert result.metrics["train/reward/errors"] == 0


def test_packages_that_are_missing_and_rewards_without_an_environment_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "verifiers", None)
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(
        UsageError, match=r"needs the package verifiers .*pip install 'verifiers>=0\.4,<0\.5'"
    ):
        load_environment("verifiers:some-taskset")
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    with pytest.raises(UsageError, match=r"pip install 'maxent-grpo\[openenv\]'"):
        load_environment("openenv:http://127.0.0.1:1")
    with pytest.raises(UsageError, match="the run has none; set it"):
        load_rewards(["environment"])
    with pytest.raises(UsageError, match="has no method scores"):
        load_rewards(["environment"], None, RewardOptions({"environment": "countdown_feedback"}))


@pytest.mark.slow
def test_a_verifiers_taskset_of_one_turn_scores_as_it_says() -> None:
    pytest.importorskip(
        "verifiers.v1", reason="verifiers is not installed (pip install 'verifiers>=0.4,<0.5')"
    )
    name = "verifiers:verifiers_games"
    rows = load_rows(name)
    assert rows[2]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say 2."},
    ]
    assert load_environment(name).reply(at(2), ["2"]) is None
    assert environment_reward(name)(["2", " 2\n", "3"], episode=[2, 2, 2]) == [1.0, 1.0, 0.0]


@pytest.mark.slow
def test_a_verifiers_environment_that_answers_is_a_dialogue() -> None:
    pytest.importorskip(
        "verifiers.v1", reason="verifiers is not installed (pip install 'verifiers>=0.4,<0.5')"
    )
    name = "verifiers:verifiers_dialogue"
    rows = load_rows(name)
    assert rows[0]["prompt"] == [
        {"role": "user", "content": "Guess a number from 0 to 9."}
    ]  # it speaks first
    environment = load_environment(name)
    assert environment.reply(at(1), ["5"]) == {"role": "user", "content": "higher"}
    assert environment.reply(at(1), ["5", "8"]) == {"role": "user", "content": "lower"}
    assert environment.reply(at(1), ["5", "8", "7"]) is None
    reward = load_rewards([environment_reward(name)])[0]
    turns = [["5", "8", "7"], ["5", "8"], ["none"]]
    arguments = {"prompts": [""] * 3, "completions": [""] * 3, "episode": [1] * 3, "turns": turns}
    found = Caller().scores(reward, arguments, CallContext())
    assert found.values[:2] == (1.0, 0.0)  # the second one was cut off
    assert "ValueError" in str(found.errors[2])
