"""The server sampler, client tags and the proxy with a live vLLM. Its policy is the bundled one, in float32."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import stop_token_ids
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.settings import ServerSettings
from maxent_grpo.rollout.vllm.connection import GenerationServiceError
from maxent_grpo.rollout.vllm.server import VLLMServerSampler
from maxent_grpo.tasks.tiny_policy import bundled_policy_path
from maxent_grpo.train.collate import collate
from maxent_grpo.types import Group, Prompt

pytestmark = pytest.mark.vllm

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SETTINGS = SamplingSettings(num_generations=8, max_completion_length=32)
KEY = (0, "completion", 3)
TOLERANCE = 1e-4  # nats


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(bundled_policy_path())


@pytest.fixture(scope="module")
def policy() -> Any:
    return AutoModelForCausalLM.from_pretrained(bundled_policy_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Prompt]:
    questions = ["What is 3+4?", "Countdown 3 4 5", "Colour the graph", "A"]
    chats = [[{"role": "user", "content": question}] for question in questions]
    encoded = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        for chat in chats
    ]
    return [Prompt(i, questions[i], tuple(ids), {}) for i, ids in enumerate(encoded)]


def sampler_of(url: str, tokenizer: Any, policy: Any, **given: Any) -> VLLMServerSampler:
    settings = ServerSettings(url, **given)
    return VLLMServerSampler(settings, tokenizer, stop_token_ids(policy, tokenizer), policy.config.vocab_size)


def largest_difference(rollouts: Any, policy: Any, tokenizer: Any, temperature: float = 1.0) -> float:
    """Between the server's log-probs and the learner's."""
    groups = [Group(rollout, {}, (0.0,) * len(rollout.texts)) for rollout in rollouts]
    batch = collate(groups, pad_id=tokenizer.pad_token_id, on_policy=True)
    with torch.no_grad():
        learned = PolicyForward(policy, temperature=temperature)(batch)[0]
    return float((batch.behaviour_logps - learned).abs()[batch.completion_mask].max())


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.8}, {"top_k": 5}, {"temperature": 0.0}])
def test_log_probs_are_the_learners(
    sampling: dict[str, Any], vllm_server: Any, prompts: Any, policy: Any, tokenizer: Any
) -> None:
    sampler = sampler_of(vllm_server.url, tokenizer, policy)
    rollouts = sampler.sample(prompts, replace(SETTINGS, **sampling), KEY, 7)
    assert largest_difference(rollouts, policy, tokenizer) < TOLERANCE
    ends = set(stop_token_ids(policy, tokenizer))
    for rollout in rollouts:
        assert len(rollout.texts) == SETTINGS.num_generations
        for ids, reason in zip(rollout.token_ids, rollout.finish_reasons, strict=True):
            assert (ids[-1] in ends) == (reason == "stop")
            assert reason == "stop" or len(ids) == SETTINGS.max_completion_length


def test_equal_seeds_repeat_in_any_company_and_others_do_not(
    vllm_server: Any, prompts: Any, policy: Any, tokenizer: Any
) -> None:
    sampler = sampler_of(vllm_server.url, tokenizer, policy)
    first = sampler.sample(prompts, SETTINGS, KEY, 0)
    again = sampler_of(vllm_server.url, tokenizer, policy).sample(prompts, SETTINGS, KEY, 0)
    assert [r.token_ids for r in again] == [r.token_ids for r in first]
    assert [sampler.sample([p], SETTINGS, KEY, 0)[0].token_ids for p in prompts] == [
        r.token_ids for r in first
    ]
    other = sampler.sample(prompts, SETTINGS, (1, *KEY[1:]), 0)
    assert all(a.token_ids != b.token_ids for a, b in zip(first, other, strict=True))
    assert all(len(set(r.token_ids)) > 1 for r in first)


def test_a_stop_string_ends_a_completion_and_stays_in_it(
    vllm_server: Any, prompts: Any, policy: Any, tokenizer: Any
) -> None:
    sampler = sampler_of(vllm_server.url, tokenizer, policy)
    free = sampler.sample(prompts, SETTINGS, KEY, 0)
    stopped = sampler.sample(prompts, replace(SETTINGS, stop=("*", "/")), KEY, 0)
    ended = 0
    for a, b in zip(free, stopped, strict=True):
        for whole, part in zip(a.texts, b.texts, strict=True):
            cut = min((whole.find(s) for s in "*/" if s in whole), default=None)
            assert part == (whole if cut is None else whole[: cut + 1])
            ended += cut is not None
    assert ended > 0


def test_what_the_start_finds_out(vllm_server: Any, policy: Any, tokenizer: Any) -> None:
    sampler = sampler_of(vllm_server.url, tokenizer, policy, client_tag="a", tag_policy="strict")
    facts = sampler.check(SETTINGS)
    assert (facts.protocol, facts.max_model_len, facts.logprobs_mode, facts.echoes_tag) == (
        "openai",
        512,
        "raw",
        True,
    )
    with pytest.raises(UsageError, match="start it with --logprobs-mode processed_logprobs"):
        sampler.check(replace(SETTINGS, temperature=0.7))
    with pytest.raises(GenerationServiceError, match="does not serve 'big'"):
        sampler_of(vllm_server.url, tokenizer, policy, model="big").check()


@pytest.mark.parametrize("through", ["middleware", "proxy"])
def test_two_clients_of_one_server_get_exactly_their_own_groups(
    through: str, request: Any, vllm_server: Any, prompts: Any, policy: Any, tokenizer: Any
) -> None:
    parts = [prompts[:2], prompts[2:]]
    alone = [sampler_of(vllm_server.url, tokenizer, policy).sample(part, SETTINGS, KEY, 0) for part in parts]
    found: dict[int, Any] = {}
    counted: dict[int, Any] = {}

    def rank(r: int, url: str) -> None:
        sampler = sampler_of(url, tokenizer, policy, client_tag=f"rank-{r}-of-2", tag_policy="strict")
        found[r] = sampler.sample(parts[r], SETTINGS, KEY, 0)
        counted[r] = {name: float(stat.value) for name, stat in sampler.drain_stats().items()}

    def both(url: str) -> None:
        ranks = [threading.Thread(target=rank, args=(r, url)) for r in range(2)]
        [thread.start() for thread in ranks]
        [thread.join(120) for thread in ranks]

    both(request.getfixturevalue("proxy") if through == "proxy" else vllm_server.url)
    for r in range(2):
        assert [rollout.prompt for rollout in found[r]] == parts[r]
        assert [rollout.token_ids for rollout in found[r]] == [rollout.token_ids for rollout in alone[r]]
        assert counted[r]["generation/requests"] == 2 * SETTINGS.num_generations + 1  # and one probe
        assert counted[r]["generation/filtered_groups"] == counted[r]["generation/retry_attempts"] == 0


def test_the_smoke_tool_sees_the_echo(vllm_server: Any) -> None:
    port = vllm_server.url.rpartition(":")[2]
    command = [sys.executable, str(TOOLS / "vllm_client_tag_smoke.py"), "--no-launch", "--port", port]
    done = subprocess.run(
        [*command, "--client-tag", "trainer-3", "--return-logprobs"],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "server echoed client_tag 'trainer-3' in 4 completions\n"
