from typing import Any

import pytest

from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.config.vllm import server_settings
from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.settings import ServerSettings


def settings_of(
    environ: dict[str, str] | None = None, ranks: int = 1, rank: int = 0, **given: Any
) -> ServerSettings:
    training = GRPOConfig(output_dir="x", use_cpu=True, use_vllm=True, vllm_mode="server", **given)
    return server_settings(training, ranks, rank, environ or {})


def test_defaults_are_those_of_the_dataclass_and_this_machine() -> None:
    assert settings_of() == ServerSettings(base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"vllm_server_host": "gpu7", "vllm_server_port": 9000}, "http://gpu7:9000"),
        ({"vllm_server_base_url": "https://pool.example/team/v1/"}, "https://pool.example/team"),
        ({"vllm_server_base_url": "gpu7:9000"}, "http://gpu7:9000"),
        ({"vllm_url": "http://localhost:8000/generate"}, "http://localhost:8000"),
        ({"vllm_url": "gpu7"}, "http://gpu7"),
        ({"vllm_url": "http://a:1/generate", "vllm_server_base_url": "http://b:2"}, "http://b:2"),
    ],
)
def test_the_address(given: dict[str, Any], url: str) -> None:
    assert settings_of(**given).base_url == url


def test_a_setting_wins_over_its_variable_and_that_over_the_default() -> None:
    environ = {
        "VLLM_TIMEOUT": "7.5",
        "VLLM_MAX_RETRIES": "9",
        "VLLM_BACKOFF": "0.25",
        "VLLM_BACKOFF_MULTIPLIER": "3",
        "MAXENT_VLLM_LOGPROB_FAIL_AFTER": "0",
        "MAXENT_VLLM_CLIENT_TAG_FAIL_FAST": "0",
        "VLLM_GROUP_REQUEST_ID": "night-run",
        "VLLM_API_KEY": "k",
        "VLLM_EXTRA_HEADERS": '{"X-Team": "a"}',
    }
    of_environment = settings_of(environ)
    assert of_environment == ServerSettings(
        base_url="http://127.0.0.1:8000",
        timeout=7.5,
        max_retries=9,
        backoff=0.25,
        backoff_multiplier=3.0,
        logprob_fail_after=0,
        tag_fail_fast=False,
        group_request_id="night-run",
        api_key="k",
        extra_headers={"X-Team": "a"},
    )
    explicit = settings_of(
        environ, vllm_max_retries=1, vllm_request_timeout=2.0, vllm_client_tag_fail_fast=True
    )
    assert (explicit.max_retries, explicit.timeout, explicit.backoff, explicit.tag_fail_fast) == (
        1,
        2.0,
        0.25,
        True,
    )


@pytest.mark.parametrize(
    ("environ", "ranks", "given", "tag", "policy"),
    [
        ({}, 1, {}, None, "lenient"),
        ({}, 4, {}, "rank-2-of-4", "strict"),
        ({"VLLM_CLIENT_TAG": "trainer-3"}, 4, {}, "trainer-3", "strict"),
        ({"VLLM_CLIENT_TAG": "trainer-3"}, 4, {"vllm_client_tag": "mine"}, "mine", "strict"),
        ({}, 4, {"vllm_client_tag_policy": "lenient"}, "rank-2-of-4", "lenient"),
        ({}, 1, {"vllm_client_tag": "mine"}, "mine", "strict"),
    ],
)
def test_the_client_tag(
    environ: dict[str, str], ranks: int, given: dict[str, Any], tag: str | None, policy: str
) -> None:
    found = settings_of(environ, ranks, rank=2 if ranks > 1 else 0, **given)
    assert (found.client_tag, found.tag_policy) == (tag, policy)


@pytest.mark.parametrize(
    ("given", "environ", "message"),
    [
        (
            {"vllm_max_retries": 51},
            {},
            r"^vllm_max_retries: 51 must be in \[0, 50\]$",
        ),
        ({}, {"VLLM_MAX_RETRIES": "2.5"}, "VLLM_MAX_RETRIES: '2.5' is not an integer$"),
        ({}, {"VLLM_TIMEOUT": "soon"}, "VLLM_TIMEOUT: 'soon' is not a finite number$"),
        (
            {},
            {"VLLM_TIMEOUT": "inf"},
            "^VLLM_TIMEOUT: 'inf' is not a finite number$",
        ),
        ({"vllm_backoff_multiplier": 0.5}, {}, "vllm_backoff_multiplier: 0.5 must be ≥ 1"),
        ({"vllm_concurrency": 0}, {}, "vllm_concurrency: 0 must be ≥ 1"),
        ({"vllm_server_base_url": "ftp://x"}, {}, "vllm_server_base_url: 'ftp://x' is no address"),
        ({"vllm_server_base_url": "http://u:hunter2@:9"}, {}, "vllm_server_base_url: ':9' is no address"),
        ({"vllm_client_tag": "a\nb"}, {}, "vllm_client_tag: .* is no tag"),
        ({}, {"VLLM_CLIENT_TAG": "x" * 129}, "VLLM_CLIENT_TAG: .* is no tag"),
        ({}, {"VLLM_EXTRA_HEADERS": "hunter2"}, "VLLM_EXTRA_HEADERS: is not a JSON object of texts"),
        ({}, {"MAXENT_VLLM_CLIENT_TAG_FAIL_FAST": "perhaps"}, "FAIL_FAST: 'perhaps' is not true or false"),
        ({"vllm_api": "generate", "vllm_prompts_per_request": 2}, {}, "takes one prompt"),
    ],
)
def test_what_cannot_work_is_named_and_no_secret_is(
    given: dict[str, Any], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        settings_of(environ, **given)
    assert "hunter2" not in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        settings_of({"VLLM_BACKOFF": "-1", "VLLM_MAX_RETRIES": "many"})
    assert {part.split(":")[0] for part in str(caught.value).split("; ")} == {
        "VLLM_BACKOFF",
        "VLLM_MAX_RETRIES",
    }


def test_what_is_secret_is_not_in_the_representation() -> None:
    found = settings_of(
        {"VLLM_API_KEY": "hunter2", "VLLM_EXTRA_HEADERS": '{"X-Key": "hunter3"}'},
        vllm_server_base_url="http://me:hunter4@host:1",
    )
    assert "hunter" not in repr(found)
    assert found.endpoint == "http://host:1"
    assert {"hunter2", "hunter3", "hunter4", "me:hunter4", "bWU6aHVudGVyNA=="} == set(found.secrets)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("vllm_server", "server"), ("vllm_engine", "colocate"), ("local", None), ("my:make", None)],
)
def test_a_sampler_is_chosen_by_name(name: str, mode: str | None) -> None:
    training = GRPOConfig(output_dir="x", use_cpu=True, sampler=name)
    assert training.use_vllm is (mode is not None)
    assert mode in (None, training.vllm_mode)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sampler": "vllm_sever"},
            r"^sampler: there is no 'vllm_sever' \(did you mean vllm_server\?\); known: local",
        ),
        ({"sampler": "vllm_engine", "vllm_mode": "server"}, "^sampler: vllm_engine is vllm_mode=colocate"),
        ({"sampler": "local", "use_vllm": True}, "^sampler: local does without vLLM, and use_vllm is true"),
        ({"vllm_sync_backend": "glue"}, r"^vllm_sync_backend: there is no 'glue'; .*your own: module:NAME"),
    ],
)
def test_a_sampler_that_is_not_there_or_contradicts_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GRPOConfig(output_dir="x", use_cpu=True, **given)
