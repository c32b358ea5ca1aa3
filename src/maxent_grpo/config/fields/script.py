"""The settings of the script section."""

from dataclasses import dataclass
from typing import Any

from maxent_grpo.config.fields import setting


@dataclass
class ScriptFields:
    """What a run reads and how completions are scored."""

    dataset_mixture: dict[str, Any] | None = setting(
        None,
        "Blend of datasets instead of dataset_name: {datasets: [{id, config, split, columns, weight}], "
        "seed, test_split_size}; a weight is the fraction of that dataset to keep.",
    )
    dataset_prompt_column: str = setting("problem", "Column of the training data that holds the question.")
    dataset_solution_column: str = setting(
        "answer", "Column of the training data that holds the reference answer."
    )
    eval_dataset_name: str | None = setting(
        None, "Dataset for evaluation during training; unset: the test split of the training dataset."
    )
    eval_dataset_config: str | None = setting(
        None, "Configuration of eval_dataset_name, as load_dataset's `name`."
    )
    eval_dataset_split: str = setting("validation", "Split of eval_dataset_name that is evaluated.")
    eval_dataset_prompt_column: str | None = setting(
        None, "Question column of the evaluation data; unset: dataset_prompt_column."
    )
    eval_dataset_solution_column: str | None = setting(
        None, "Answer column of the evaluation data; unset: dataset_solution_column."
    )
    reward_funcs: list[str] = setting(
        ["pure_accuracy_math"],
        "Reward functions by registry name; a completion's utility is the weighted sum of their scores.",
    )
    reward_weights: list[float] = setting(
        [],
        "One weight per reward function; empty: 1.0 each. May be given as a training setting instead, not "
        "as both.",
    )
    eval_reward_funcs: list[str] = setting([], "Reward functions of the evaluation; empty: reward_funcs.")
    eval_reward_weights: list[float] = setting([], "One weight per evaluation reward; empty: 1.0 each.")
    cosine_min_value_wrong: float = setting(0.0, "Reward cosine: value of a wrong answer at length 0.")
    cosine_max_value_wrong: float = setting(
        -0.5, "Reward cosine: value of a wrong answer at length cosine_max_len."
    )
    cosine_min_value_correct: float = setting(
        0.5, "Reward cosine: value of a right answer at length cosine_max_len."
    )
    cosine_max_value_correct: float = setting(1.0, "Reward cosine: value of a right answer at length 0.")
    cosine_max_len: int = setting(1000, "Reward cosine: characters over which the value falls.")
    repetition_n_grams: int = setting(3, "Reward repetition_penalty: words in an n-gram.")
    repetition_max_penalty: float = setting(
        -1.0, "Reward repetition_penalty: value if all n-grams repeat, ≤ 0."
    )
    missing_boxed_answer_penalty: float = setting(
        -0.05, "Reward missing_boxed_answer_penalty_math: value without a boxed answer, ≤ 0."
    )
    code_confinement: str = setting(
        "kernel",
        "Rewards code, python_unit_tests, binary_code: what confines a program, kernel (Landlock and "
        "seccomp; refused where the kernel lacks them) or none.",
    )
