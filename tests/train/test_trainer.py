"""Training from Python with one's own model object, prompts and reward."""

import json
import logging

import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

from maxent_grpo import GRPOConfig, GRPOTrainer
from maxent_grpo.errors import UsageError


def reward(completions, **_):
    return [sum(map(ord, c)) % 7 / 6 for c in completions]


@pytest.fixture
def args(tmp_path):
    return GRPOConfig(
        output_dir=str(tmp_path / "run"),
        objective="maxent",
        maxent_tau=0.05,
        beta=0.1,
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=5,
        use_cpu=True,
        disable_tqdm=True,
    )


def test_a_model_object_is_trained_in_place(args, policy, tokenizer):
    before = policy.lm_head.weight.detach().clone()
    result = GRPOTrainer(policy, reward, args, ["a", "b", "c"], processing_class=tokenizer).train()
    assert result.global_step == 2
    assert not policy.lm_head.weight.equal(before)
    assert 0.0 < result.metrics["train/reward"] < 1.0


def test_rewards_see_the_columns_of_the_rows_by_name(args, policy, tokenizer):
    seen = set()

    def by_column(completions, colour, **_):
        seen.update(colour)
        return [float(len(c)) for c in completions]

    rows = [{"prompt": "a", "colour": "red"}, {"prompt": "b", "colour": "blue"}]
    GRPOTrainer(policy, [by_column], args, rows, processing_class=tokenizer).train()
    assert seen == {"red", "blue"}


def test_training_goes_on_from_its_last_checkpoint(args, policy, tokenizer, tmp_path, caplog):
    GRPOTrainer(policy, reward, args, ["a", "b"], processing_class=tokenizer).train()
    args.max_steps = 3
    with caplog.at_level(logging.WARNING, logger="maxent_grpo.train.records"):
        result = GRPOTrainer(policy, reward, args, ["a", "b"], processing_class=tokenizer).train(True)
    assert result.global_step == 3
    assert "resuming with a changed setting: max_steps: 2 → 3" in caplog.text
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 1, 2, 3]


def test_no_prompts_and_unsupported_settings_are_refused_at_construction(args, policy, tokenizer):
    with pytest.raises(UsageError, match="train_dataset is empty"):
        GRPOTrainer(policy, reward, args, [], processing_class=tokenizer)
    args.mask_truncated_completions = True
    with pytest.raises(UsageError, match="mask_truncated_completions"):
        GRPOTrainer(policy, reward, args, ["a"], processing_class=tokenizer)


def test_a_gold_that_no_completion_can_equal_is_refused_before_a_model_is_loaded(args):
    trainer = GRPOTrainer("bundled:tiny-policy", ["gsm8k"], args, [{"prompt": "a", "answer": True}])
    with pytest.raises(UsageError, match=r"^row 0, column 'answer': the gold answer is True, a truth value"):
        trainer.train()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "reward_funcs is empty"),
        (None, "reward_funcs is empty"),
        (torch.nn.Linear(2, 1), "a Linear is neither a function nor a Transformers model"),
        (["org/reward-model"], "cannot load the reward model 'org/reward-model'"),
        ([reward, reward], "two functions are called 'reward'.*rename one"),
        ([3], "neither a name nor a callable"),
    ],
)
def test_rewards_that_cannot_work_are_refused_in_one_line_at_construction(args, given, said):
    with pytest.raises(UsageError, match=said) as caught:
        GRPOTrainer("bundled:tiny-policy", given, args, ["a"])
    assert "\n" not in str(caught.value)


def test_columns_are_named_and_errors_name_the_arguments(args, policy, tokenizer):
    seen = set()

    def by_answer(completions, answer, **_):
        seen.update(answer)
        return [float(len(c)) for c in completions]

    rows = [{"text": "a", "gold": "1"}, {"text": "b", "gold": "2"}]
    columns = {"prompt_column": "text", "solution_column": "gold"}
    GRPOTrainer(policy, by_answer, args, rows, processing_class=tokenizer, **columns).train()
    assert seen == {"1", "2"}
    args.overwrite_output_dir = True
    with pytest.raises(UsageError, match=r"from Python: prompt_column"):
        GRPOTrainer(policy, by_answer, args, rows, processing_class=tokenizer).train()
    with pytest.raises(UsageError, match=r"gsm8k compares with gold answers.*from Python: solution_column"):
        GRPOTrainer("bundled:tiny-policy", "gsm8k", args, rows, prompt_column="text").train()


def test_rows_without_an_answer_stay_where_no_reward_reads_it(args, policy, tokenizer):
    seen = set()

    def by_prompt(completions, prompts, **_):
        seen.update(prompts)
        return [float(len(c)) for c in completions]

    rows = [{"prompt": "a", "answer": None}, {"prompt": "b", "answer": ""}]
    GRPOTrainer(policy, by_prompt, args, rows, processing_class=tokenizer).train()
    assert len(seen) == 2


def test_the_model_is_trained_evaluated_and_saved_as_in_trl(args, tmp_path):
    args.model_init_kwargs = {"dtype": torch.float64, "attn_implementation": "sdpa"}
    trainer = GRPOTrainer("bundled:tiny-policy", reward, args, ["a", "b"], ["c"])
    assert trainer.settings.model.source.dtype == torch.float64
    before = trainer.evaluate()
    assert trainer.state.log_history == []
    trainer.train()
    assert trainer.model.dtype == torch.float64
    assert trainer.settings.model.source.attn_implementation == "sdpa"
    assert [record["step"] for record in trainer.state.log_history] == [1, 2]
    assert trainer.state.global_step == 2
    after = trainer.evaluate()
    assert before.keys() == after.keys()
    assert after == trainer.evaluate(["c"])
    trainer.save_model(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.lm_head.weight.equal(trainer.model.lm_head.weight)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == len(trainer.processing_class)


def test_an_adapter_of_peft_is_all_that_is_trained(args, policy, tokenizer):
    peft = pytest.importorskip("peft")
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"])
    trainer = GRPOTrainer(policy, reward, args, ["a"], processing_class=tokenizer, peft_config=lora)
    trainer.train()
    assert isinstance(trainer.model, peft.PeftModel)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)
    after = {
        n.replace(".base_layer", ""): p
        for n, p in trainer.model.base_model.model.named_parameters()
        if "lora" not in n
    }
    assert all(after[name].equal(value) for name, value in before.items())
    trainer.evaluate(["b"])
    with pytest.raises(UsageError, match="peft_config: the model has an adapter already"):
        GRPOTrainer(trainer.model, reward, args, ["a"], processing_class=tokenizer, peft_config=lora)
    with pytest.raises(UsageError, match="peft_config is a dict"):
        GRPOTrainer("bundled:tiny-policy", reward, args, ["a"], peft_config={"r": 2})


def test_settings_of_trl_are_taken_where_nothing_would_be_ignored(tmp_path):
    directory = str(tmp_path / "run")
    given = trl.GRPOConfig(
        directory, learning_rate=2e-6, num_generations=4, use_cpu=True, beta=0.1, max_steps=3
    )
    args = GRPOTrainer("bundled:tiny-policy", reward, given, ["a"]).args
    assert isinstance(args, GRPOConfig)
    assert (args.learning_rate, args.num_generations, args.beta, args.max_steps) == (2e-6, 4, 0.1, 3)
    assert args.steps_per_generation == given.steps_per_generation
    given = trl.GRPOConfig(directory, use_cpu=True, mask_truncated_completions=True, push_to_hub=True)
    with pytest.raises(UsageError, match=r"args is trl\.GRPOConfig.*") as caught:
        GRPOTrainer("bundled:tiny-policy", reward, given, ["a"])
    assert all(name in str(caught.value) for name in ("mask_truncated_completions", "push_to_hub"))
    with pytest.raises(UsageError, match=r"args is a dict; take maxent_grpo.GRPOConfig"):
        GRPOTrainer("bundled:tiny-policy", reward, {}, ["a"])


def test_what_only_the_subclass_of_trl_has_is_refused_by_its_name(args):
    with pytest.raises(TypeError, match=r"does not take callbacks, tools: .*MaxEntGRPOTrainer"):
        GRPOTrainer("bundled:tiny-policy", reward, args, ["a"], callbacks=[object()], tools=[len])
    with pytest.raises(TypeError, match="unknown arguments: prompts"):
        GRPOTrainer("bundled:tiny-policy", reward, args, prompts=["a"])
    trainer = GRPOTrainer("bundled:tiny-policy", reward, args, ["a"], callbacks=None, optimizers=(None, None))
    with pytest.raises(AttributeError, match=r"no push_to_hub: .*MaxEntGRPOTrainer"):
        trainer.push_to_hub()
    with pytest.raises(UsageError, match="evaluate: there is no eval_dataset"):
        trainer.evaluate()


def test_a_model_without_a_tokenizer_and_loading_that_cannot_be_asked_for_are_said(args, policy, tmp_path):
    policy.name_or_path = str(tmp_path)
    with pytest.raises(
        UsageError, match=r"processing_class: no tokenizer is saved.*processing_class=tokenizer"
    ):
        GRPOTrainer(policy, reward, args, ["a"])
    args.model_init_kwargs = {"device_map": "auto"}
    with pytest.raises(UsageError, match="model_init_kwargs: device_map: of these only dtype"):
        GRPOTrainer("bundled:tiny-policy", reward, args, ["a"])
    args.model_init_kwargs = {"dtype": "bfloat16"}
    with pytest.raises(UsageError, match="the model is loaded already"):
        GRPOTrainer(policy, reward, args, ["a"])


def test_several_evaluation_sets_are_refused(args):
    with pytest.raises(UsageError, match=r"eval_dataset is several data sets \('easy', 'hard'\)"):
        GRPOTrainer(
            "bundled:tiny-policy", reward, args, ["a"], {"easy": [{"prompt": "a"}], "hard": [{"prompt": "b"}]}
        )
