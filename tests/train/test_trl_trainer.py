"""The TRL subclass: the same first step as the native loop, TRL's own behaviour elsewhere."""

import inspect
import json
import logging
import math
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig as TRLConfig
from trl import GRPOTrainer

from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.errors import UsageError
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.train.trl import MaxEntGRPOTrainer, answer_text
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


def test_right_is_what_trls_correctness_reward_says(make_trainer):
    def accuracy_reward(completions, **columns):
        return [float(len(text) % 3 == 0) for text in completions]

    trainer = make_trainer(rewards=(vowels, accuracy_reward), objective="maxrl", scale_rewards="none")
    output = first_batch(trainer)
    scores = trainer._rewards[:, 1].view(-1, GROUP)
    mean = scores.mean(dim=1, keepdim=True)
    expected = torch.where((mean > 0) & (mean < 1), (scores - mean) / mean, 0.0)
    assert expected.any()
    torch.testing.assert_close(output["advantages"], expected.flatten())
    with pytest.raises(UsageError, match="correctness_reward: the objective needs to know"):
        make_trainer(rewards=(vowels, sometimes_none), objective="maxrl", scale_rewards="none")


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


# Groups that are not whole, and tokens that are not the policy's: what TRL hands over is written out by hand.

TOKENS = 5
LOGPS = -torch.arange(1.0, 8 * TOKENS + 1).remainder(7).add(1).div(4).view(8, TOKENS)
MAXENT = {"objective": "maxent", "maxent_tau": 0.5, "beta": 0.1}


@pytest.fixture
def hand_over(monkeypatch):
    """The trainer's answer to an output of TRL's: 2 groups of 4, rewards [8, functions], further entries."""

    def advantages(trainer, rewards, **entries):
        def parents(self, inputs):
            self._rewards = torch.tensor(rewards).view(8, -1)
            self._answers = [(f"\\boxed{{{row % 2}}}", None) for row in range(8)]
            self._logs["advantages"].extend([9.0] * 8)  # as TRL fills its table
            base = {
                "prompt_ids": torch.ones(8, 2, dtype=torch.long),
                "prompt_mask": torch.ones(8, 2, dtype=torch.long),
                "completion_ids": torch.ones(8, TOKENS, dtype=torch.long),
                "completion_mask": torch.ones(8, TOKENS, dtype=torch.long),
                "advantages": torch.full((8,), 9.0),
                "old_per_token_logps": LOGPS.clone(),
                "ref_per_token_logps": LOGPS.clone() * 1.1,
            }
            return base | entries

        monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", parents)
        trainer.model.train()
        return trainer._generate_and_score_completions([])["advantages"].double()

    return advantages


def at_tau(trainer, tau):
    """The trainer with a τ that no recipe can name: at ∞ the advantages are TRL's."""
    state = replace(trainer.controllers.state, tau=tau, tau_log=None)
    trainer.controllers = replace(trainer.controllers, state=state)
    return trainer


REWARDS = [1.0, 0.25, 0.0, 0.5, 0.0, 1.0, 0.75, 0.0]
NAN = math.nan


def maxent_by_hand(rewards, logps, reference, tau=0.5, beta=0.1):
    """G·(w − p) of one group, from sums of log-probs."""
    size = len(rewards)
    q = (torch.tensor(rewards).double()).softmax(0) * (1 - 1e-6 * size) + 1e-6
    w = ((q.log() + beta * reference.double()) / (tau + beta)).softmax(0)
    return size * (w - logps.double().softmax(0))


def test_a_log_prob_that_vllm_does_not_know_is_the_policys_own(make_trainer, hand_over):
    trainer = make_trainer(**MAXENT)
    whole = hand_over(trainer, REWARDS)
    sampled = LOGPS.clone()
    sampled[0, 2] = NAN
    assert torch.equal(hand_over(trainer, REWARDS, sampling_per_token_logps=sampled), whole)
    expected = torch.cat(
        [
            maxent_by_hand(REWARDS[rows], LOGPS[rows].sum(1), 1.1 * LOGPS[rows].sum(1))
            for rows in (slice(0, 4), slice(4, 8))
        ]
    )
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)


def test_an_unknown_log_prob_is_scored_afresh_and_a_nan_beyond_that_leaves_its_token_out(
    make_trainer, hand_over, monkeypatch
):
    trainer = make_trainer(**MAXENT)
    sampled = LOGPS.clone()
    sampled[0, 2] = sampled[5, 4] = NAN
    entries = {"sampling_per_token_logps": sampled, "old_per_token_logps": None}
    monkeypatch.setattr(trainer, "_policy_logps", lambda output: LOGPS)
    assert torch.equal(hand_over(trainer, REWARDS, **entries), hand_over(trainer, REWARDS))
    monkeypatch.setattr(trainer, "_policy_logps", lambda output: sampled)
    without = torch.ones(8, TOKENS, dtype=torch.long)
    without[0, 2] = without[5, 4] = 0
    found = hand_over(trainer, REWARDS, **entries)
    assert torch.isfinite(found).all()
    assert torch.equal(found, hand_over(trainer, REWARDS, tool_mask=without))


@pytest.mark.parametrize(
    "settings",
    [
        MAXENT,
        MAXENT | {"objective": "tilted"},
        MAXENT | {"objective": "maxent_likelihood", "loss_type": "dr_grpo"},
        {"objective": "dr_grpo", "seed_grpo_enabled": True, "seed_grpo_alpha": 2.0},
    ],
    ids=["maxent", "tilted", "likelihood", "seed-grpo"],
)
def test_what_tools_and_environments_wrote_moves_no_advantage(make_trainer, hand_over, settings):
    trainer = make_trainer(**settings)
    tool_mask = torch.ones(8, TOKENS, dtype=torch.long)
    tool_mask[1, 1:3] = 0
    other = LOGPS.clone()
    other[1, 1:3] -= 20.0
    plain = hand_over(trainer, REWARDS, tool_mask=tool_mask)
    for changed in ("old_per_token_logps", "ref_per_token_logps"):
        reference = {"ref_per_token_logps": 1.1 * LOGPS} | {changed: other}
        if changed == "ref_per_token_logps":
            reference[changed] = torch.where(tool_mask.bool(), 1.1 * LOGPS, other)
        assert torch.equal(hand_over(trainer, REWARDS, tool_mask=tool_mask, **reference), plain)
    assert torch.isfinite(plain).all()
    assert plain.abs().max() > 0.1


def test_the_sampling_policy_is_scored_with_the_images_of_the_batch(make_trainer, hand_over, monkeypatch):
    trainer = make_trainer(**MAXENT)
    seen = {}

    def scorer(model, ids, mask, kept, **beside):
        seen.update(beside)
        return LOGPS, None, None

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", scorer)
    images = {
        "pixel_values": torch.ones(8, 3, 2, 2),
        "image_grid_thw": torch.ones(8, 3),
        "num_images": [1] * 8,
        "num_tiles": [1] * 8,
        "image_sizes": torch.ones(8, 2),
        "pixel_attention_mask": torch.ones(8, 2),
        "spatial_shapes": torch.ones(8, 2),
        "token_type_ids": torch.zeros(8, 7),
        "mm_token_type_ids": torch.zeros(8, 7),
        "image_position_ids": torch.zeros(8, 7),
    }
    hand_over(trainer, REWARDS, old_per_token_logps=None, **images)
    assert {name: seen[name] is value for name, value in images.items()} == dict.fromkeys(images, True)


def test_a_masked_completion_is_out_of_its_group(make_trainer, hand_over):
    trainer = make_trainer(mask_truncated_completions=True, **MAXENT)
    whole = hand_over(trainer, REWARDS)
    mask = torch.ones(8, TOKENS, dtype=torch.long)
    mask[0] = 0
    found = hand_over(trainer, REWARDS, completion_mask=mask)
    rest = maxent_by_hand(REWARDS[1:4], LOGPS[1:4].sum(1), 1.1 * LOGPS[1:4].sum(1))
    assert found[0] == 0
    torch.testing.assert_close(found[1:4], rest, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[4:], whole[4:])
    entropies = trainer._metrics["train"]["weight_entropy"]
    assert entropies[1] < entropies[0]  # a group of three has less room


def test_a_group_of_which_too_little_is_left_teaches_nothing(make_trainer, hand_over):
    trainer = make_trainer(mask_truncated_completions=True, **MAXENT)
    mask = torch.ones(8, TOKENS, dtype=torch.long)
    mask[0:3] = mask[4:8] = 0
    assert (hand_over(trainer, REWARDS, completion_mask=mask) == 0).all()
    assert "weight_entropy" not in trainer._metrics["train"]
    trainer = make_trainer(objective="dr_grpo", advantage="pass_at_k", pass_k=3)
    mask[2] = 1
    rewards = [0.0, 0.0, 0.0, 1.0] * 2
    assert (hand_over(trainer, rewards, completion_mask=mask) == 0).all()
    assert (hand_over(trainer, rewards) != 0).any()


@pytest.mark.parametrize("tau", [math.inf, 0.5])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_unscored_completions_change_nothing_for_the_others(make_trainer, hand_over, tau, scale):
    trainer = at_tau(make_trainer(objective="tilted", scale_rewards=scale), tau)
    found = hand_over(trainer, [1.0, NAN, 0.0, NAN, *REWARDS[4:]])
    scored = torch.tensor([1.0, 0.0, *REWARDS[4:]]).double()
    expected = []
    for group in (scored[:2], scored[2:]):
        std = {"group": group.std(), "batch": scored.std(), "none": torch.tensor(1 - 1e-4)}[scale]
        a = (group - group.mean()) / (std + 1e-4)
        expected.append(a if tau == math.inf else len(a) * (a / tau).softmax(0) * a)
    torch.testing.assert_close(found[[0, 2, 4, 5, 6, 7]], torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert found[1] == found[3] == 0


def test_unscored_completions_are_out_of_sums_of_normalised_rewards(make_trainer, hand_over):
    settings = {"beta": 0.0, "multi_objective_aggregation": "normalize_then_sum"}
    trainer = at_tau(make_trainer(TRLConfig, rewards=(vowels, sometimes_none), **settings), math.inf)
    first, second = [1.0, NAN, 0.0, 0.5, *REWARDS[4:]], [NAN, NAN, 2.0, 1.0, 0.0, 1.0, 2.0, 4.0]
    rewards = torch.tensor([first, second]).T.double()
    found = hand_over(trainer, rewards.float().tolist())
    grouped = rewards.view(2, 4, 2)
    centred = grouped - grouped.nanmean(dim=1, keepdim=True)
    counts = (~grouped.isnan()).sum(dim=1, keepdim=True)
    parts = centred / ((centred.square().nansum(dim=1, keepdim=True) / (counts - 1)).sqrt() + 1e-4)
    sums = parts.nansum(dim=2).flatten()
    known = sums[[0, 2, 3, 4, 5, 6, 7]]
    torch.testing.assert_close(
        found[[0, 2, 3, 4, 5, 6, 7]], (known - 0.0) / (known.std() + 1e-4), atol=1e-4, rtol=1e-4
    )
    assert found[1] == 0


def test_trls_own_metrics_and_its_table_are_as_trl_has_them_but_for_the_advantages(make_trainer):
    settings = {
        "rewards": (vowels, sometimes_none),
        "beta": 0.0,
        "log_completions": True,
        "reward_weights": [1, 2],
    }
    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
        trainer = make_trainer(TRLConfig, multi_objective_aggregation=aggregation, **settings)
        output = first_batch(trainer)
        rewards = trainer._rewards
        total = (rewards * torch.tensor([1.0, 2.0])).nansum(dim=1)
        metrics = trainer._metrics["train"]
        assert metrics["reward"] == pytest.approx([total.mean().item()])
        assert metrics["reward_std"] == pytest.approx([total.std().item()])
        assert len(metrics["frac_reward_zero_std"]) == 1
        assert {"utility", "utility_std", "frac_utility_zero_std"} <= set(metrics)
        assert list(trainer._logs["advantages"]) == pytest.approx(output["advantages"].tolist())


def test_a_loss_with_a_kl_of_its_own_keeps_the_name(make_trainer):
    trainer = make_trainer(
        objective="dr_grpo",
        seed_grpo_enabled=True,
        beta=0.1,
        kl_target=0.1,
        kl_ctl_step_size=0.5,
        kl_horizon=1,
    )
    first_batch(trainer)
    assert "kl" not in trainer._metrics["train"]  # TRL adds it with the loss
    assert "kl_error_to_target" in trainer._metrics["train"]


def test_a_checkpoint_of_trls_trainer_is_taken_over_with_one_warning(make_trainer, tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 2, "objective": "tilted", "maxent_tau": 0.1}
    make_trainer(**settings).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    (checkpoint / "controller_state.json").unlink()  # what remains is what TRL's trainer writes
    resumed = make_trainer(**settings)
    with caplog.at_level(logging.WARNING, logger="maxent_grpo"):
        resumed.train(resume_from_checkpoint=str(checkpoint))
    assert [record.message for record in caplog.records if "start afresh" in record.message] != []
    assert len([record for record in caplog.records if record.name.startswith("maxent_grpo")]) == 1
    assert resumed.state.global_step == 3
    (checkpoint / "controller_state.json").write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        make_trainer(**settings).train(resume_from_checkpoint=str(checkpoint))


def test_the_signature_is_trls():
    ours, trls = inspect.signature(MaxEntGRPOTrainer), inspect.signature(GRPOTrainer)
    assert {name: p.default for name, p in ours.parameters.items()} == {
        name: p.default for name, p in trls.parameters.items()
    }
    assert inspect.getfullargspec(MaxEntGRPOTrainer.__init__).args == [
        "self",
        *trls.parameters,
    ]


def test_a_refusal_is_a_value_error_too(make_trainer):
    with pytest.raises(ValueError, match="behaviour_kl_coef"):
        make_trainer(objective="grpo", behaviour_kl_coef=0.1)


def test_the_answer_of_a_chat_is_the_assistants_last_message_and_no_tools():
    chat = [
        {"role": "assistant", "content": "I ask."},
        {"role": "tool", "content": "\\boxed{1}"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "2."}],
        },
    ]
    assert answer_text(chat) == "It is 2."
    assert answer_text([{"role": "assistant", "content": None}]) == ""
    assert answer_text("plain") == "plain"
