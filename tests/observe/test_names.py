import pytest

from maxent_grpo.observe.names import is_secret, without_secrets


@pytest.mark.parametrize(
    "key",
    [
        "HF_TOKEN",
        "hub_token",
        "token",
        "VLLM_API_KEY",
        "wandb_api_key",
        "password",
        "aws.secret",
        "vllm_extra_headers",
    ],
)
def test_names_of_secrets(key):
    assert is_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        "num_tokens",
        "max_new_tokens",
        "eos_token",
        "pad_token",
        "train/kl_per_completion_token",
        "tokens/s",
        "seed",
    ],
)
def test_words_of_language_models_are_kept(key):
    assert not is_secret(key)


def test_secrets_go_at_every_depth_and_the_rest_stays():
    config = {
        "lr": 0.1,
        "hub_token": "x",
        "model": {"api_key": "x", "name": "m"},
        "list": [{"password": "x", "a": 1}],
    }
    assert without_secrets(config) == {"lr": 0.1, "model": {"name": "m"}, "list": [{"a": 1}]}
