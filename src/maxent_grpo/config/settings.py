"""This package's settings, one record each: type, default, help, range, and what it feeds.

Standard library only. A name that TRL has too appears here only where its default or its type differs; what else is
said about TRL's own settings stands in `config.trl_settings`. A dataclass takes the fields of its last base first.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from maxent_grpo.objectives.components import SETTINGS
from maxent_grpo.settings import group_of, native, setting


# fmt: off
@dataclass
class ScriptFields:
    """Data and rewards."""

    dataset_mixture: dict[str, Any] | None = setting(None, "Blend of datasets instead of dataset_name: "
        "{datasets: [{id, config, split, columns, weight}], seed, test_split_size}; a weight is the fraction "
        "of that dataset to keep.")
    dataset_prompt_column: str | None = setting(None, "Column of the training data that holds the prompt, a text or "
        "a chat, or a path such as data.problem; unset: prompt, else problem, else question.")
    apply_chat_template: bool | None = setting(None, "Make a text prompt a user's message in the chat template; unset: "
        "a question (any column but prompt) is, and a text of the column prompt goes to the model as it is.")
    dataset_solution_column: str = setting("answer", "Column of the training data that holds the reference "
        "answer.")
    eval_dataset_name: str | None = setting(None, "Dataset for evaluation during training; unset: the test "
        "split of the training dataset.")
    eval_dataset_config: str | None = setting(None, "Configuration of eval_dataset_name, as load_dataset's "
        "`name`.")
    eval_dataset_split: str = setting("validation", "Split of eval_dataset_name that is evaluated.")
    eval_dataset_prompt_column: str | None = setting(None, "Question column of the evaluation data; unset: "
        "dataset_prompt_column.")
    eval_dataset_solution_column: str | None = setting(None, "Answer column of the evaluation data; unset: "
        "dataset_solution_column.")
    reward_funcs: list[str] = setting(["pure_accuracy_math"], "Reward functions by registry name; a "
        "completion's utility is the weighted sum of their scores.")
    reward_weights: list[float] = setting([], "One weight per reward function; empty: 1.0 each. May be given "
        "as a training setting instead, not as both.")
    eval_reward_funcs: list[str] = setting([], "Reward functions of the evaluation; empty: reward_funcs.")
    eval_reward_weights: list[float] = setting([], "One weight per evaluation reward; empty: 1.0 each.")
    grader_policy: dict[str, Any] | None = setting(None, "Rewards accuracy, boxed_accuracy_math, cosine, length: "
        "options of math_answers.GraderPolicy, such as {extraction: [boxed, last_number], relative_tolerance: 0.01}.")
    cosine_min_value_wrong: float = setting(0.0, "Reward cosine: value of a wrong answer at length 0.")
    cosine_max_value_wrong: float = setting(-0.5, "Reward cosine: value of a wrong answer at length "
        "cosine_max_len.")
    cosine_min_value_correct: float = setting(0.5, "Reward cosine: value of a right answer at length "
        "cosine_max_len.")
    cosine_max_value_correct: float = setting(1.0, "Reward cosine: value of a right answer at length 0.")
    cosine_max_len: int = setting(1000, "Reward cosine: characters over which the value falls.", ge=1)
    repetition_n_grams: int = setting(3, "Reward repetition_penalty: words in an n-gram.", ge=1)
    repetition_max_penalty: float = setting(-1.0, "Reward repetition_penalty: value if all n-grams repeat, ≤ 0.",
        le=0)
    missing_boxed_answer_penalty: float = setting(-0.05, "Reward missing_boxed_answer_penalty_math: value "
        "without a boxed answer, ≤ 0.", le=0)
    code_confinement: str = setting("kernel", "Rewards code, python_unit_tests, binary_code: what confines a "
        "program, kernel (Landlock and seccomp; refused where the kernel lacks them) or none.")


@dataclass
class ObjectiveFields:
    """What is trained."""

    objective: str | None = setting(None, "Name in the objective catalog (grpo, dr_grpo, maxent, tilted …), or "
        "module:NAME of your own; unset: grpo, or maxent where train_grpo_objective is false.")
    train_grpo_objective: bool | None = setting(None, "True: a GRPO-family loss; false: a maximum-entropy loss "
        "over the group; unset: as the objective and the command imply.")
    force_custom_loop: bool = setting(False, "Train a GRPO objective with this package's loop instead of TRL's "
        "trainer, so that paired runs share it.")
    beta: float | None = setting(None, "Weight of the frozen reference policy: the KL coefficient of a GRPO "
        "loss, the reference's share in MaxEnt weights; unset: 0, TRL's default.",
        ge=0, le=1e6, aliases=("init_kl_coeff", "init_kl_coef", "kl_penalty_beta"), feeds="controllers.beta")
    dynamic_sampling: bool = native(False, "Replace groups whose utilities are all equal by groups of further "
        "prompts before a step (DAPO).")
    dynamic_sampling_max_rounds: int = native(4, "Sampling rounds after which a rollout is completed with "
        "groups of equal utilities; ≥ 1.", gt=0)
    difficulty_pools: bool = native(False, "Draw prompts with replacement, by weights that depend on the share of "
        "right completions in their latest group: hard, normal, easy or unseen.")
    difficulty_hard_threshold: float = native(0.25, "Difficulty pools: hard is up to this share of right completions.",
        ge=0, lt=1, feeds="difficulty.hard_threshold")
    difficulty_easy_threshold: float = native(0.75, "Difficulty pools: easy is above this share of right completions.",
        gt=0, le=1, feeds="difficulty.easy_threshold")
    difficulty_hard_weight: float = native(0.2, "Difficulty pools: weight of a hard prompt; 0: is not drawn again.",
        ge=0, feeds="difficulty.hard_weight")
    difficulty_normal_weight: float = native(1.0, "Difficulty pools: weight of a normal prompt; 0: is not drawn again.",
        ge=0, feeds="difficulty.normal_weight")
    difficulty_easy_weight: float = native(0.2, "Difficulty pools: weight of an easy prompt; 0: is not drawn again.",
        ge=0, feeds="difficulty.easy_weight")
    difficulty_unseen_weight: float = native(1.0, "Difficulty pools: weight of a prompt that has had no group yet; "
        "all have at the start, so that it is above 0.", gt=0, feeds="difficulty.unseen_weight")


@dataclass
class MaxEntFields:
    """MaxEnt over the group."""

    maxent_tau: float = setting(0.0, "Weight τ of the entropy of the distribution over a group's completions, "
        "≥ 0.", ge=0, le=1e6, feeds="controllers.tau")
    maxent_kl_in_loss: bool = setting(False, "Add beta times the KL to the reference to a MaxEnt loss, whose "
        "weights hold the reference already.")
    maxent_allow_no_reference: bool = setting(False, "Permit the listwise loss with beta 0, whose optimum over "
        "all strings is close to uniform noise.")
    maxent_reference_logprobs_source: Literal["auto", "model"] = setting("auto",
        "Who scores the reference: both values use the frozen reference model, never the sampler's log-probs.")
    reference_model_name_or_path: str | None = native(None, "Frozen reference policy, hub id or directory; "
        "unset: the policy as it was at the start.")
    reference_model_revision: str | None = setting(None, "Revision of reference_model_name_or_path.")


@dataclass
class DivergenceFields:
    """Divergences and corrections."""

    use_bias_correction_kl: bool = setting(False, "TRL's trainer only: multiply the KL term by the probability "
        "ratio; false (TRL: true), so that both trainers optimise the same published GRPO loss.",
        route="trl", instead="this loss belongs to TRL's trainer")


@dataclass
class ControllerFields:
    """Controllers of tau and beta."""

    maxent_target_weight_entropy: float | None = setting(None, "Target of the mean weight entropy in nats, at "
        "most ln num_generations; under mode entropy, of the entropy of a group's right answers; set it to adapt τ.",
        ge=0, feeds="controllers.target_weight_entropy")
    maxent_target_weight_entropy_start: float | None = setting(None, "Weight-entropy target at step 0 where "
        "the target is annealed, in nats.", ge=0, feeds="controllers.target_weight_entropy_start")
    maxent_target_weight_entropy_final: float | None = setting(None, "Weight-entropy target at the end of the "
        "annealing, in nats.", ge=0, feeds="controllers.target_weight_entropy_final")
    maxent_target_weight_entropy_horizon: int = setting(0, "Optimiser steps over which the target moves "
        "linearly from start to final; 0: final at once.",
        ge=0, feeds="controllers.target_weight_entropy_horizon")
    maxent_tau_lr: float = setting(0.0, "Step size of the τ controller on log τ per nat of entropy error; 0: τ "
        "stays.", ge=0, feeds="controllers.tau_lr")
    maxent_tau_min: float = setting(0.0, "Lower bound of τ.", ge=0, feeds="controllers.tau_min")
    maxent_tau_max: float = setting(0.0, "Upper bound of τ; 0: none.", ge=0, feeds="controllers.tau_max")
    maxent_tau_warmup_steps: int = setting(-1, "Optimiser steps before the τ controller acts; -1: as long as "
        "the learning rate warms up.", ge=-1, feeds="controllers.tau_warmup_steps")
    kl_target: float = setting(0.0, "KL to the reference in nats per token that the β controller holds; 0: no "
        "target.", ge=0, feeds="controllers.kl_target")
    kl_horizon: int = native(0, "Time constant of the β controller in optimiser steps; 0: β stays.",
        ge=0, feeds="controllers.kl_horizon")
    kl_ctl_step_size: float = native(0.0, "Largest relative KL error that one β update may use; 0: β stays.",
        ge=0, feeds="controllers.kl_ctl_step_size")
    entropy_kl_threshold: float | None = native(None, "KL to the reference in nats per token at which "
        "entropy_coef counts once: more below, less above; unset: whatever the KL.",
        gt=0, feeds="entropy.kl_threshold")
    entropy_kl_gain: float = native(1.0, "How strongly the KL scales entropy_coef, within a factor of 2 either "
        "way; ≥ 0.", ge=0, feeds="entropy.kl_gain")
    entropy_kl_trust_zone: bool = native(False, "No entropy bonus at all above entropy_kl_threshold, instead "
        "of a smaller one.", feeds="entropy.kl_trust_zone")
    controller_meta_enabled: bool = setting(False, "Move τ and β by gradient on ½(H − H*)² + ½(KL − KL*)² "
        "instead of by the two controllers above.", feeds="meta.enabled")
    controller_meta_method: str = setting("analytic", "Gradient of that potential: analytic, first_order, or "
        "truncated_backprop.", feeds="meta.method")
    controller_meta_lr: float = setting(0.0, "Step size of the meta-controller, for τ and β alike.",
        ge=0, feeds="meta.lr")
    controller_meta_tau_lr: float = setting(0.0, "Its step size for τ; 0: controller_meta_lr.",
        ge=0, feeds="meta.tau_lr")
    controller_meta_beta_lr: float = setting(0.0, "Its step size for β; 0: controller_meta_lr.",
        ge=0, feeds="meta.beta_lr")
    controller_meta_beta_grad_clip: float = setting(0.0, "Bound on the β gradient of one update; 0: none.",
        ge=0, feeds="meta.beta_grad_clip")
    controller_meta_update_interval: int = setting(1, "Optimiser steps between two meta updates, ≥ 1.",
        gt=0, feeds="meta.update_interval")
    controller_meta_objective: Literal["potential"] = setting("potential",
        "The only meta objective there is: the regularised potential.", feeds="meta.objective")
    controller_meta_analytic_steps: int = setting(1, "Steps that one update of the analytic method takes; ≥ 1.",
        gt=0, feeds="meta.analytic_steps")
    controller_meta_optimizer: Literal["sgd", "adam", "adamw"] = setting("sgd",
        "Optimiser of τ and β.", feeds="meta.optimizer")
    controller_meta_truncation_steps: int = setting(1, "Inner updates that truncated_backprop unrolls; ≥ 1.",
        gt=0, feeds="meta.truncation_steps")
    controller_meta_use_hessian: bool = setting(False, "Scale the meta step by the potential's curvature.",
        feeds="meta.use_hessian")
    controller_resume_from: str | None = native(None, "Directory or file whose controller_state.json starts τ "
        "and β of a fresh run.")
    controller_overwrite_from_config: bool = native(False, "Start τ and β from the recipe although a "
        "controller state is loaded; ignored when a run resumes.")


@dataclass
class CompletionFields:
    """Rewards and prompts."""

    reward_timeout: float = setting(10.0, "Seconds of wall clock that an isolated reward function has for a "
        "completion, or it loses its score.", gt=0)
    reward_memory_mb: int = setting(2048, "Memory of a reward worker in MB; what asks for more loses its "
        "completion the score; 0: no limit.", ge=0)
    reward_workers: int = setting(2, "Processes per rank that run isolated reward functions; scores do not "
        "depend on it.", gt=0)
    reward_isolation: bool = setting(True, "Run module:function rewards, and built-in ones that may not end, in "
        "worker processes; false: all in the trainer's, without deadline.")
    correctness_reward: str | None = setting(None, "Reward function that says what is right, by a score of at least 1: "
        "for pass, mean@k and advantages of right answers; unset: the first that is known to judge answers, else the "
        "only one.")
    mode_key: str | None = native(None, "module:function that names the right answer that a completion gives, by which "
        "modes are counted: (text, row's columns) → text or None; unset: the task's verifier, the gold that it equals, "
        "or the answer.")
    reward_model_batch_size: int = setting(16, "Reward model: sequences in a forward pass; its scores do not depend on "
        "it.", gt=0)
    reward_model_device: str | None = setting(None, "Reward model: where it runs, such as cuda:1 or cpu; unset: on the "
        "learner's device.")
    reward_model_dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Reward model: type of its "
        "parameters.")
    reward_model_trust_remote_code: bool = setting(False, "Reward model: run code that comes with its weights.")
    judge_url: str | None = setting(None, "Reward judge: address of an OpenAI-compatible server, up to and with /v1.")
    judge_model: str | None = setting(None, "Reward judge: the name that the server knows the judge by.")
    judge_api_key_env: str = setting("OPENAI_API_KEY", "Reward judge: environment variable that the key is read from.")
    judge_template: str | None = setting(None, "Reward judge: what it is asked, with {completion}, {prompt} and "
        "{COLUMN} of the data; it must ask for a last line <score>X</score>, X from 0 to 1; unset: whether the "
        "answer is right and well made.")
    judge_max_tokens: int = setting(512, "Reward judge: longest verdict in tokens.", gt=0)
    judge_timeout: float = setting(60.0, "Reward judge: seconds of one attempt.", gt=0)
    judge_retries: int = setting(4, "Reward judge: attempts after the first; without a verdict a completion then has "
        "no score.", ge=0)
    judge_concurrency: int = setting(16, "Reward judge: requests in flight.", gt=0)
    zero_truncated_completion_rewards: bool = native(False, "Give utility 0 to a completion that ran to "
        "max_completion_length without ending.")
    stop_sequences: list[str] | str | None = native(None, 'Texts that end a completion and stay part of it: a '
        'list, a JSON list, or "a||b".', aliases=("vllm_stop_sequences",))
    environment: str | None = native(None, "Who answers the policy: countdown_feedback, verifiers:TASKSET, "
        "openenv:URL, or module:NAME of your own; a completion then has several turns; unset: nobody.")
    max_turns: int = native(3, "Turns of the policy in a completion, where there is an environment; ≥ 1.", gt=0)
    system_prompt: str | None = setting(None, "System message put before every prompt.")
    chat_template: str | None = setting(None, "Jinja chat template; unset: the tokenizer's.")
    sampling_batch_size: int | None = native(None, "Most completions sampled at once, in whole groups and at "
        "least one: bounds memory, not results; unset: a rollout's.", gt=0)
    max_prompt_length: int | None = setting(None, "Longest prompt in tokens; longer ones are dropped and "
        "counted in a notice; unset: no limit.", gt=0)
    benchmarks: list[str] = setting([], "Benchmarks to run after training; must be empty: evaluate a "
        "checkpoint with the math-eval command.")


@dataclass
class EvaluationFields:
    """Evaluation while training."""

    eval_temperature: float = native(0.6, "Temperature of sampled evaluation, whatever training samples at; 0: "
        "the likeliest token.", ge=0, le=100)
    eval_top_p: float = native(0.95, "Nucleus of sampled evaluation, in (0, 1]; 1 keeps every token.",
        gt=0, le=1)
    eval_top_k: int = native(0, "Tokens that sampled evaluation keeps; 0 or -1: all.", ge=-1)
    eval_min_p: float | None = native(None, "Least probability relative to the likeliest token in sampled "
        "evaluation; unset: none.", ge=0, le=1)
    greedy_eval_enabled: bool = native(False, "Also evaluate one greedy completion per prompt, under "
        "eval/greedy/.")


@dataclass
class InfoSeedFields:
    """InfoSeed."""

    info_seed_prompt_template: str = setting("\n[seed={seed}]", "Appended to the prompt with {seed} filled in; "
        "with {prompt} it replaces the prompt.")
    info_seed_pooling: Literal["mean", "last"] = setting("mean", "How a completion's hidden states become one "
        "vector.")


@dataclass
class WorkerFields:
    """Training on Ray."""

    driver: Literal["inline", "sync", "async"] = setting("inline", "Who calls the step: this process in turn "
        "with sampling (inline), or Ray workers, in turn (sync) or at the same time (async).")
    rollout_workers: int = setting(1, "Ray workers that sample and score, each with a copy of the policy; "
        "completions do not depend on it.", ge=1)
    learner_workers: int = setting(1, "Ray workers that hold the learner, one rank each, as distributed says; "
        "they make up a step's batch.", ge=1)
    reference_workers: int = setting(0, "Ray workers that score the frozen reference policy; 0: the learner "
        "scores it.", ge=0)
    max_staleness: int | None = setting(None, "Most optimiser steps between the weights that sampled a group "
        "and those it first trains; unset: 0 (sync), or what async needs to sample one rollout ahead.", ge=0)
    buffer_groups: int | None = setting(None, "Most groups sampled or being sampled and not yet trained on; "
        "unset: as many as max_staleness admits.")
    weight_update_frequency: int = setting(1, "Optimiser steps after which the rollout workers get new "
        "weights, at the end of a rollout's updates.", ge=1)
    overlap_sampling: bool = setting(False, "driver=sync: sample the next rollout during the updates on this "
        "one, with weights one rollout old.")
    worker_timeout: float = setting(600.0, "Seconds that a Ray worker has for one piece of work, such as a "
        "batch of groups or a rollout's updates; after that it is replaced.", gt=0)
    ray_address: str | None = setting(None, "Ray cluster to join, as ray.init takes it; unset: that of "
        "RAY_ADDRESS, else one here, for this run.")


@dataclass
class RunFields:
    """The run."""

    micro_batch_tokens: int | None = native(None, "Most real tokens in one forward and backward pass, each "
        "prompt counted once and padding not at all; a larger group is a pass by itself; unset: "
        "per_device_train_batch_size completions.", gt=0)
    distributed: Literal["ddp", "fsdp2", "zero2", "zero3"] | None = native(None,
        "How several processes hold the policy: whole (ddp), sharded (fsdp2), or by DeepSpeed (zero2, zero3); "
        "unset: as accelerate launch's configuration says, else ddp.",
        instead="TRL's trainer takes it from accelerate launch; set force_custom_loop=true")
    max_nonfinite_steps: int = native(3, "Consecutive steps with a non-finite loss or gradient, none of them "
        "applied, after which the run ends.", gt=0)
    unknown_keys: Literal["refuse", "ignore"] = setting("refuse", "What becomes of keys that no setting here takes and "
        "of settings that the run would not read: an error, or one warning that lists them.",
        changes_results=False)
    overwrite_output_dir: bool = setting(False, "Start afresh in an output_dir that holds a run, removing its "
        "state.", changes_results=False)
    resume_from_checkpoint: str | bool | None = setting(None, "Checkpoint directory to go on from; true: the "
        "newest in output_dir.", changes_results=False)
    logging_steps: float = setting(1, "Optimiser steps between two log records; 1 (TRL: 10), since every step "
        "is worth a line in metrics.jsonl.", gt=0)
    gradient_checkpointing: bool | None = setting(None, "Recompute activations in the backward pass; unset: "
        "false (TRL: true), since it adds a forward pass that only a model near the memory limit needs.")
    bf16: bool | None = setting(None, "bfloat16 mixed precision; unset: true on a GPU that has it and false "
        "elsewhere (TRL: always true).")


@dataclass
class TrackerFields:
    """The run."""

    wandb_project: str | None = native(None, "Weights & Biases project; unset: WANDB_PROJECT.",
        changes_results=False, instead="TRL's trainer does not read it; export WANDB_PROJECT")
    wandb_entity: str | None = native(None, "Weights & Biases entity; unset: WANDB_ENTITY.",
        changes_results=False, instead="TRL's trainer does not read it; export WANDB_ENTITY")
    wandb_run_group: str | None = native(None, "Weights & Biases run group; unset: WANDB_RUN_GROUP.",
        changes_results=False, instead="TRL's trainer does not read it; export WANDB_RUN_GROUP")


@dataclass
class VLLMFields:
    """Sampling with vLLM."""

    sampler: str | None = native(None, "Sampler of training: local, vllm_server, vllm_engine, or module:NAME of "
        "a sampler factory; unset: as use_vllm and vllm_mode say.")
    vllm_url: str | None = setting(None, "vLLM generate endpoint; with use_vllm in server mode it gives the "
        "server base URL, host and port.")
    vllm_sync_weights: bool = native(True, "Give the vLLM sampler the learner's weights; false: it samples "
        "from those that it was started with.")
    vllm_sync_interval_steps: int = native(1, "Optimiser steps between two such publications, ≥ 0; 0: never, "
        "as vllm_sync_weights=false.", ge=0)
    vllm_sync_backend: str = native("auto",
        "How weights reach a server: by files (disk), or the backend of its --weight-transfer-config (gloo, nccl, "
        "ipc), or module:NAME of a transport factory; auto: that backend, else disk.")
    vllm_sync_urls: list[str] = native([], "Base URLs of all servers behind a proxy, which all get the "
        "weights; empty: vllm_server_base_url alone.")
    vllm_sync_dir: str | None = native(None, "Directory for disk, under one path on trainer and servers; "
        "unset: a folder of output_dir.")
    vllm_sync_timeout: float = native(300.0, "Seconds that weights may take to reach all servers, and each of their "
        "answers; then the attempt is given up, the connection made anew, and after the third the run ends.", gt=0)
    vllm_api: Literal["auto", "openai", "generate", "trl"] = native("auto",
        "Protocol of the server: openai (/v1/completions), generate (vLLM's /inference/v1/generate), trl "
        "(TRL's former server); auto: openai where it is there, else trl.", feeds="server.api")
    vllm_model: str | None = native(None, "Name under which the server must serve the policy; unset: the only "
        "model that it serves.", feeds="server.model")
    vllm_request_timeout: float | None = native(None, "Seconds from sending a request to the last byte of its "
        "answer; unset: VLLM_TIMEOUT, else 120.", gt=0, env=("VLLM_TIMEOUT",), feeds="server.timeout")
    vllm_max_retries: int | None = native(None, "Further attempts of a request that failed, 0 to 50; unset: "
        "VLLM_MAX_RETRIES, else 3.", ge=0, le=50, env=("VLLM_MAX_RETRIES",), feeds="server.max_retries")
    vllm_backoff: float | None = native(None, "Seconds before the first further attempt, jitter comes on top; "
        "unset: VLLM_BACKOFF, else 1.", ge=0, env=("VLLM_BACKOFF",), feeds="server.backoff")
    vllm_backoff_multiplier: float | None = native(None, "Factor from one such pause to the next, ≥ 1; unset: "
        "VLLM_BACKOFF_MULTIPLIER, else 2.",
        ge=1, env=("VLLM_BACKOFF_MULTIPLIER",), feeds="server.backoff_multiplier")
    vllm_max_completion_rounds: int = native(0, "Rounds that ask for completions that are missing; 0: "
        "num_generations of them.", ge=0, feeds="server.max_completion_rounds")
    vllm_retry_sleep: float = native(0.5, "Seconds between two such rounds.", ge=0, feeds="server.retry_sleep")
    vllm_concurrency: int = native(64, "Requests of one process in flight at a time.",
        ge=1, feeds="server.concurrency")
    vllm_prompts_per_request: int = native(1, "Prompts in one request; more than one share a seed, so that a "
        "completion depends on its company.", ge=1, feeds="server.prompts_per_request")
    vllm_backfill_with_model: bool = native(False, "Sample what the server does not deliver with the trainer's "
        "own model, counted and logged.")
    vllm_client_tag: str | None = native(None, "Tag of this process's requests; unset: VLLM_CLIENT_TAG, else "
        "rank-R-of-W among several processes.")
    vllm_client_tag_policy: Literal["strict", "lenient"] | None = native(None,
        "What to do with untagged answers: strict drops them, lenient keeps them; unset: strict with a tag.")
    vllm_client_tag_fail_fast: bool | None = native(None, "End the run at once where an answer holds no group "
        "of this process, instead of asking again; unset: MAXENT_VLLM_CLIENT_TAG_FAIL_FAST, else true.",
        env=("MAXENT_VLLM_CLIENT_TAG_FAIL_FAST",), feeds="server.tag_fail_fast")
    vllm_logprob_fail_after: int | None = native(None, "Answers in a row without log-probs that end the run, "
        "whatever attempts remain; 0: no such limit; unset: MAXENT_VLLM_LOGPROB_FAIL_AFTER, else 3.",
        ge=0, env=("MAXENT_VLLM_LOGPROB_FAIL_AFTER",), feeds="server.logprob_fail_after")


@dataclass(frozen=True)
class MachineSettings:
    """The machine."""

    max_prompt_chars: int | None = setting(None, "Characters kept of a user message, clipped before the chat "
        "template; unset: all, as max_prompt_length leaves out what is too long.",
        gt=0, env=("MAX_PROMPT_CHARS",))
    dataset_retries: int = setting(6, "Further attempts to load a dataset of the hub.",
        ge=0, env=("MAXENT_HF_DATASET_RETRIES",))
    dataset_retry_sleep: float = setting(2.0, "Seconds before the first of them, doubled for each further one.",
        ge=0, env=("MAXENT_HF_DATASET_RETRY_SLEEP",))
    dataset_retry_max_sleep: float = setting(60.0, "Most seconds before one of them.",
        ge=0, env=("MAXENT_HF_DATASET_RETRY_MAX_SLEEP",))
    allow_accelerate_state: bool = setting(False, "Accelerate writes the training state where DeepSpeed's ZeRO "
        "fails to.", env=("MAXENT_ALLOW_DEEPSPEED_STATE_SAVE",), feeds="checkpoints.accelerate_fallback")
    skip_deepspeed_state: bool = setting(False, "No training state under DeepSpeed's ZeRO.",
        env=("MAXENT_SKIP_DEEPSPEED_STATE_SAVE",), feeds="checkpoints.deepspeed_state")
    prefer_accelerate_state: bool = setting(False, "Accelerate instead of DeepSpeed writes ZeRO's training state.",
        env=("MAXENT_PREFER_ACCELERATE_STATE_SAVE",), feeds="checkpoints.deepspeed_state")
    checkpoint_metadata: Literal["shallow", "full"] = setting("full", "shallow: weights only in the sharded state, "
        "until the last step.", env=("MAXENT_CHECKPOINT_METADATA_MODE",), feeds="checkpoints.metadata")
    checkpoint_metadata_source: str | None = setting(None, "Folder that shallow checkpoints copy configuration and "
        "tokenizer from.", env=("MAXENT_CHECKPOINT_METADATA_SOURCE",), feeds="checkpoints.metadata_source")


# fmt: on
ObjectiveParts: Any = group_of("ObjectiveParts", SETTINGS.values())
"""What feeds the objective's components, as `objectives.components` declares it."""


@dataclass
class TrainingFields(
    TrackerFields,
    VLLMFields,
    RunFields,
    WorkerFields,
    InfoSeedFields,
    EvaluationFields,
    CompletionFields,
    ControllerFields,
    DivergenceFields,
    MaxEntFields,
    ObjectiveFields,
    ObjectiveParts,
):
    """The settings of the training section that TRL has not, or with another default."""

    if TYPE_CHECKING:  # what `rules.settle` leaves in settings that may be given as unset, or in another form
        objective: str = "grpo"
        train_grpo_objective: bool = True
        beta: float = 0.0
        epsilon: float = 0.2
        loss_type: Any = "grpo"
        scale_rewards: Any = "group"
        importance_sampling_level: Any = "token"
        top_entropy_quantile: float = 1.0
        pass_k: int = 4
        num_generations: int = 8
        max_completion_length: int = 512
        steps_per_generation: int = 1
        gradient_checkpointing: bool = False
        bf16: bool = False
        stop_sequences: list[str] | None = None
        resume_from_checkpoint: str | None = None
        max_staleness: int = 0

    @property
    def objective_family(self) -> str:
        """``"grpo"``, or ``"maxent"`` where the objective trains on weights over the group."""
        return "grpo" if self.train_grpo_objective else "maxent"
