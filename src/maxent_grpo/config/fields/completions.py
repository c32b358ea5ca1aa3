"""The settings of prompts, and of what becomes of completions."""

from dataclasses import dataclass

from maxent_grpo.config.fields import setting


@dataclass
class CompletionFields:
    """Rewards and prompts."""

    reward_timeout: float = setting(
        10.0,
        "Seconds of wall clock that an isolated reward function has for a completion, or it loses its score.",
    )
    reward_memory_mb: int = setting(
        2048,
        "Memory of a reward worker in MB; what asks for more loses its completion the score; 0: no limit.",
    )
    reward_workers: int = setting(
        2, "Processes per rank that run isolated reward functions; scores do not depend on it."
    )
    reward_isolation: bool = setting(
        True,
        "Run module:function rewards, and built-in ones that may not end, in worker processes; false: all in the "
        "trainer's, without deadline.",
    )
    zero_truncated_completion_rewards: bool = setting(
        False, "Give utility 0 to a completion that ran to max_completion_length without ending."
    )
    stop_sequences: list[str] | str | None = setting(
        None, 'Texts that end a completion and stay part of it: a list, a JSON list, or "a||b".'
    )
    environment: str | None = setting(
        None,
        "Who answers the policy: countdown_feedback, or module:NAME of your own; a completion then has several turns; "
        "unset: nobody.",
    )
    max_turns: int = setting(3, "Turns of the policy in a completion, where there is an environment; ≥ 1.")
    system_prompt: str | None = setting(None, "System message put before every prompt.")
    chat_template: str | None = setting(None, "Jinja chat template; unset: the tokenizer's.")
    sampling_batch_size: int | None = setting(
        None,
        "Most completions sampled at once, in whole groups and at least one: bounds memory, not results; unset: a "
        "rollout's.",
    )
    max_prompt_length: int | None = setting(
        None, "Longest prompt in tokens; longer ones are dropped and counted in a notice; unset: no limit."
    )
    benchmarks: list[str] = setting(
        [],
        "Benchmarks to run after training; must be empty: evaluate a checkpoint with the math-eval command.",
    )
