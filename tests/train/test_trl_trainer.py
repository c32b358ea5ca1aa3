"""The TRL subclass: the same first step as the native loop, TRL's own behaviour elsewhere."""

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig as TRLConfig

from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.errors import UsageError
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train.trl import MaxEntGRPOTrainer
from maxent_grpo.types import Batch, Denominators, Forward

PROMPTS = ["What is 12 + 34?", "a", "Tell me about swans.", "7"]
GROUP = 4


def vowels(completions, **columns):
    return [sum(c in "aeiou" for c in text) / 4 for text in completions]


def sometimes_none(completions, **columns):
    return [None if len(set(text)) % 2 else len(text) / 10 for text in completions]


@pytest.fixture
def make_trainer(policy_dir, tokenizer, tmp_path):
    def make(config=GRPOConfig, rewards=(vowels,), **settings):
        args = config(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=len(PROMPTS) * GROUP,
            num_generations=GROUP,
            max_completion_length=8,
            learning_rate=1e-3,
            use_cpu=True,
            model_init_kwargs={"dtype": "float32"},
            bf16=False,
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
            seed=3,
            **{"gradient_checkpointing": False, "save_strategy": "no", "max_steps": 3} | settings,
        )
        return MaxEntGRPOTrainer(
            model=str(policy_dir),
            reward_funcs=list(rewards),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=tokenizer,
        )

    return make


def first_batch(trainer):
    trainer.model.train()
    rows = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
    return trainer._generate_and_score_completions(rows)


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "tilted", "maxent_tau": 0.1},
        {"objective": "tilted", "maxent_tau": 0.1, "beta": 0.05},
        {"objective": "maxent", "maxent_tau": 0.05, "beta": 0.1},
        {"objective": "maxent_likelihood", "maxent_tau": 0.05, "beta": 0.1, "loss_type": "dr_grpo"},
        {"objective": "dr_grpo", "beta": 0.04},
    ],
    ids=lambda s: "-".join(str(v) for v in s.values()),
)
def test_the_first_gradient_is_the_native_loops(make_trainer, settings):
    trainer = make_trainer(**settings)
    knobs = trainer.controllers.knobs()
    output = first_batch(trainer)
    trainer.current_gradient_accumulation_steps = 1
    trls = gradient(trainer.model, trainer._compute_loss(trainer.model, output))

    mask = output["completion_mask"].bool()
    batch = Batch(
        prompt_ids=output["prompt_ids"][::GROUP],
        prompt_mask=output["prompt_mask"][::GROUP].bool(),
        completion_ids=output["completion_ids"],
        completion_mask=mask,
        behaviour_logps=torch.zeros(mask.shape),
        utilities=trainer._rewards.view(-1, GROUP),
        reference_logps=output.get("ref_per_token_logps"),
    )
    policy = PolicyForward(trainer.model)
    with torch.no_grad():
        behaviour = policy(batch)[0]
    batch = replace(batch, behaviour_logps=behaviour)
    signal, _ = trainer.objective.signal(batch, knobs)
    forward = Forward(*policy(batch))
    counts = Denominators(len(PROMPTS), mask.shape[0], float(mask.sum()), 8)
    ours = gradient(trainer.model, trainer.objective.loss(forward, batch, signal, knobs, counts)[0])
    assert ours.norm() > 1e-4
    assert (ours - trls).norm() <= 2e-5 * ours.norm()


def test_with_trls_own_config_it_tilts_at_the_shipped_tau(make_trainer):
    trainer = make_trainer(TRLConfig, beta=0.0, scale_rewards="none")
    output = first_batch(trainer)
    utilities = trainer._rewards.view(-1, GROUP).double()
    centred = utilities - utilities.mean(dim=1, keepdim=True)
    expected = GROUP * (centred / 0.05).softmax(dim=1) * centred
    torch.testing.assert_close(output["advantages"].double(), expected.flatten(), atol=1e-6, rtol=1e-5)


def test_a_plain_grpo_objective_keeps_trls_advantages(make_trainer):
    trainer = make_trainer(objective="grpo")
    output = first_batch(trainer)
    utilities = trainer._rewards.view(-1, GROUP)
    centred = utilities - utilities.mean(dim=1, keepdim=True)
    expected = centred / (utilities.std(dim=1, keepdim=True) + 1e-4)
    torch.testing.assert_close(output["advantages"], expected.flatten())


def test_seed_grpo_scales_trls_advantages(make_trainer):
    trainer = make_trainer(objective="dr_grpo", seed_grpo_enabled=True, seed_grpo_alpha=2.0)
    output = first_batch(trainer)
    utilities = trainer._rewards.view(-1, GROUP)
    centred = utilities - utilities.mean(dim=1, keepdim=True)
    # No completion of the random policy holds an answer: G clusters, weighted by their probability per token.
    mask = output["completion_mask"].bool()
    batch = Batch(
        output["prompt_ids"][::GROUP],
        output["prompt_mask"][::GROUP].bool(),
        output["completion_ids"],
        mask,
        torch.zeros(mask.shape),
        utilities,
    )
    with torch.no_grad():
        logps = PolicyForward(trainer.model)(batch)[0]
    p = (logps.sum(dim=1) / mask.sum(dim=1)).view(-1, GROUP).softmax(dim=1)
    entropy = -(p * p.log()).sum(dim=1, keepdim=True)
    scale = 1 / (1 + 2.0 / torch.tensor(float(GROUP)).log() * entropy)
    torch.testing.assert_close(output["advantages"], (centred * scale).flatten(), atol=1e-6, rtol=1e-4)


def test_a_completion_that_no_function_scored_teaches_nothing(make_trainer):
    trainer = make_trainer(TRLConfig, rewards=(sometimes_none,), beta=0.0)
    output = first_batch(trainer)
    unscored = trainer._rewards.isnan().all(dim=1)
    assert 0 < int(unscored.sum()) < len(unscored)
    assert (output["advantages"][unscored] == 0).all()
    assert torch.isfinite(output["advantages"]).all()
    for group, known, found in zip(
        trainer._rewards.view(-1, GROUP),
        ~unscored.view(-1, GROUP),
        output["advantages"].view(-1, GROUP),
        strict=True,
    ):
        utilities = group[known].double()
        centred = utilities - utilities.mean() if len(utilities) > 1 else 0 * utilities
        scaled = centred / (utilities.std(correction=min(1, max(0, len(utilities) - 1))) + 1e-4)
        expected = len(utilities) * (scaled / 0.05).softmax(dim=0) * scaled
        torch.testing.assert_close(found[known].double(), expected, atol=1e-5, rtol=1e-5)


def test_controllers_move_are_logged_saved_and_resumed(make_trainer, tmp_path):
    settings = {
        "objective": "tilted",
        "maxent_tau": 0.1,
        "maxent_target_weight_entropy": 0.5,
        "maxent_tau_lr": 0.2,
        "maxent_tau_min": 0.01,
        "maxent_tau_max": 1.0,
        "maxent_tau_warmup_steps": 0,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    trainer = make_trainer(**settings)
    trainer.train()
    taus = [record["tau"] for record in trainer.state.log_history if "tau" in record]
    assert len(taus) == 3
    assert len(set(taus)) == 3
    assert all("weight_entropy" in r for r in trainer.state.log_history if "tau" in r)
    saved = json.loads((tmp_path / "run" / "checkpoint-2" / "controller_state.json").read_text())
    assert saved["tau"] == pytest.approx(taus[2])
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert [r["tau"] for r in resumed.state.log_history if "tau" in r] == pytest.approx(taus)


def test_beta_follows_the_kl_to_the_reference(make_trainer):
    kl = {"kl_target": 1e-3, "kl_horizon": 1, "kl_ctl_step_size": 0.5}
    trainer = make_trainer(objective="maxent", maxent_tau=0.05, beta=0.1, **kl)
    trainer.train()
    records = [record for record in trainer.state.log_history if "beta" in record]
    assert records[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # the policy starts as its reference
    assert records[1]["beta"] == pytest.approx(0.05)  # less KL than the target: half as much pull
    assert records[1]["kl"] > 1e-6


def test_the_reference_acts_through_the_weights_and_not_twice(make_trainer):
    trainer = make_trainer(objective="maxent", maxent_tau=0.05, beta=0.1)
    assert "ref_per_token_logps" in first_batch(trainer)
    assert trainer.beta == 0.0


def test_an_objective_beyond_advantages_is_refused(make_trainer):
    with pytest.raises(UsageError, match="behaviour_kl_coef"):
        make_trainer(objective="grpo", behaviour_kl_coef=0.1)
