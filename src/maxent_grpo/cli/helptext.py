"""The text of ``--help``. Reads only light modules: it must not wait for torch or Hydra."""

import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from maxent_grpo.config.settings import ScriptFields, TrainingFields
from maxent_grpo.settings import Setting, settings_of

_HEAD = """\
maxent-grpo: train language models with group-relative policy optimisation (GRPO) and with maximum-entropy
variants that act on the group of sampled completions.

usage: maxent-grpo command=COMMAND [key=value ...] [--config-name PRESET] [--multirun]

commands
  train-baseline   GRPO and its family                        (script: maxent-grpo-baseline)
  train-maxent     MaxEnt-GRPO: a target over each group      (script: maxent-grpo-maxent)
  train-infoseed   GRPO with seeded prompts and a seed loss   (script: maxent-grpo-infoseed)
  train            any of these, by its objective, from the preset grpo_gsm8k unless another, or recipe=FILE, is named;
                   mode=sync or mode=async trains on Ray      (scripts: maxent-grpo-sync, maxent-grpo-async)
  math-eval        pass@k of models on a benchmark, resumable  (scripts: maxent-grpo-math-eval, maxent-grpo-inference;
                   also command=math_eval, command=inference)
  generate         completions for the rows of a data set     (script: maxent-grpo-generate, whose --help lists its
                   settings): generate.args.hf_dataset=… generate.args.model=…
  report           plots and an HTML page of a run directory: run=DIR
  study            compare methods over matched seeds         (script: maxent-grpo-study): study.plan=FILE
  demo             train the bundled tiny policy on a CPU, nothing to download: demo.steps=100 demo.seed=0

examples
  # a recipe, with two settings changed; look before it runs
  maxent-grpo-maxent maxent.recipe=configs/recipes/Qwen2.5-1.5B-Instruct/maxent-grpo/config_math.yaml \\
    training.learning_rate=5e-7 training.output_dir=var/data/run1 dry_run=true
  # a preset (command, recipe and overrides in one file), then another seed for each of three jobs
  maxent-grpo --config-path configs/recipes/hydra --config-name maxent_math --multirun training.seed=0,1,2
  # TorchRL's names, on the bundled policy; presets: grpo_gsm8k grpo_ifeval grpo_math grpo_countdown grpo_tiny
  maxent-grpo command=train --config-name grpo_tiny --multirun optimizer.lr=1e-4,1e-5 policy.kl_coef=0.01,0.1
  # no recipe at all
  maxent-grpo-baseline baseline.model.model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct \\
    baseline.script.dataset_name=open-r1/OpenR1-Math-220k baseline.training.output_dir=var/data/out
  # 8 samples of each MATH-500 problem under 5 seeds; the same line again goes on where it was stopped
  maxent-grpo-math-eval inference.dataset=math_500 inference.models='[{model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct}]'
  # the bundled policy, nothing to download
  maxent-grpo-math-eval inference.models=[bundled:tiny-policy] inference.dataset=graph_coloring inference.seeds=[0,1]

keys
  command=COMMAND                  what to run; the scripts above fill it in
  baseline.* maxent.* infoseed.*   one section per training command:
    SECTION.recipe=FILE            a flat YAML recipe; unset: the file that GRPO_RECIPE names, or, where no model is
                                   named either, the 1.5B mathematics recipe of the checkout
    SECTION.script.KEY=VALUE       data and rewards
    SECTION.training.KEY=VALUE     training, objective, controllers, sampling, logging
    SECTION.model.KEY=VALUE        model loading
  script.KEY training.KEY model.KEY   the same for the section of the running command
  KEY=VALUE                        the same, where the key's name alone says which group it belongs to
  train.* env.* optimizer.* policy.* train_model.* ref_model.* inference_model.* model.name mode
                                   the names of TorchRL's GRPO scripts: docs/guides/dialect.md
  dry_run=true                     print the resolved settings, the route and the plan; load and write nothing
  Order of precedence: defaults < recipe < preset < command line. An unknown key is an error.
  Lists are [a,b]; quote what the shell would eat. --multirun with a=1,2 runs every combination, each in
  <output_dir>/<what varies>; command=train without output_dir: in multirun/<date>/<time>/<what varies>, and a single
  run in outputs/<date>/<time>. --hydra-help lists Hydra's own flags.

evaluation: inference.KEY=VALUE (defaults)
  models ([])          names, or mappings {model_name_or_path: …, label: …, revision: …, system_prompt: …}; also:
                       style, system_prompt_file, chat_template, prompt_template (qwen_math, no, r1, or a text with
                       {question}), stop_sequences, max_new_tokens (768), temperature, top_p (0.9), num_generations,
                       generation_kwargs {top_k, min_p}, batch_size (1 prompt), device, torch_dtype (auto), cache_dir,
                       trust_remote_code, tokenizer_kwargs; for a server that speaks OpenAI's protocol, vLLM included:
                       backend: openai, base_url: http://HOST:PORT/v1, api_key_env (OPENAI_API_KEY), concurrency (16),
                       request_timeout (600 s), max_retries (4)
  dataset (math_500)   math_500 aime24 aime25 amc minerva gsm8k olympiadbench; countdown graph_coloring need no download
  eval.FIELD           what of the benchmark to replace: dataset_name (a hub id, or PATH.jsonl), dataset_config, split,
                       prompt_column, answer_column, id_column, grader (math, task), dataset_id
  seeds ([0,1,2,3,4])  num_generations (8)  temperature (0.6; also a list)  limit (all prompts)
  ks                   which k of pass@k to report (1, 2, 4, … and all samples)
  artifacts.root_dir (var/artifacts/inference)  artifacts.resume (true; false starts over)  artifacts.enabled (true)
  artifacts.write_prompts (true)  collect_generations (false; Python only: texts in the results)
  Answers are kept prompt by prompt. A change of model, data, prompt, sampling or grader is refused, never mixed.

study
  study.plan=FILE                  what is compared (configs/study has some); runs what is missing, then reports
  study.dry_run=true               print the runs and an estimate of the time; study.probe=false makes no timing
  study.output_dir=DIR study.processes=N study.arms=[a,b]   instead of the plan's; some arms and the baseline
  study.analyse=true               report on the finished runs
  study.index=K study.slurm=true   one run alone; all runs as a Slurm job array (with dry_run: print its script)

TRL style, with the same recipes and checks
  python -m maxent_grpo.grpo        --config FILE --learning_rate 5e-7 --bf16
  python -m maxent_grpo.maxent_grpo --config FILE --maxent_tau 0.1
"""

_TAIL = """\
More settings are TRL's own (num_generations, learning_rate, per_device_train_batch_size, use_vllm ...):
  training: https://huggingface.co/docs/trl/main/en/grpo_trainer#trl.GRPOConfig
  model and script: https://huggingface.co/docs/trl/main/en/script_utils (ModelConfig, ScriptArguments)

environment
  GRPO_RECIPE           recipe of a training command that names none
  MAXENT_LOG_LEVEL      log_level of the run; DEBUG also prints tracebacks (or MAXENT_GRPO_LOGLEVEL)
  MAX_PROMPT_CHARS      characters kept of a user message (2048), clipped before the chat template
  MAXENT_HF_DATASET_RETRIES, …_RETRY_SLEEP, …_RETRY_MAX_SLEEP   patience with the hub: 6, 2 s, 60 s
  MAXENT_GIT_SHA        commit to record where git is not at hand
  HF_TOKEN, HF_HOME     Hugging Face access and cache
  WANDB_PROJECT ...     Weights & Biases, where the recipe says report_to: wandb

exit codes
  0 done   1 the run failed   2 the request is wrong   130 interrupted
"""


def help_text(width: int | None = None) -> str:
    """The whole help, wrapped to ``width`` columns (the terminal's by default)."""
    columns = width or min(shutil.get_terminal_size((110, 24)).columns, 120)
    return "\n".join([_HEAD, *_setting_lines(columns), "", _TAIL])


def topics() -> dict[str, list[Setting]]:
    """Heading → this package's settings under it."""
    records = (*settings_of(ScriptFields, section="script"), *settings_of(TrainingFields))
    found: dict[str, list[Setting]] = {}
    for record in records:
        found.setdefault(f"{record.topic} ({record.section})", []).append(record)
    return found


def _setting_lines(columns: int) -> Iterator[str]:
    yield "settings of this package, with defaults"
    for heading, records in topics().items():
        yield f"\n {heading}"
        for record in records:
            yield from _describe(record, columns)


def _describe(record: Setting, columns: int) -> list[str]:
    indent = " " * 6
    text = textwrap.wrap(
        f"{record.help}{facts(record)}", max(columns, 40), initial_indent=indent, subsequent_indent=indent
    )
    return [f"  {record.name} ({shown(record.default)})", *text]


def facts(record: Setting) -> str:
    """What a record says besides its help: range, choices, other names, environment variables; "" for nothing."""
    choices = ", ".join(str(choice) for choice in record.options if choice not in record.help)
    parts = [
        f"must be {record.range}" if record.range and record.range not in record.help else "",
        f"one of {choices}" if choices else "",
        f"also: {', '.join(record.aliases)}" if record.aliases else "",
        f"environment: {', '.join(name for name in record.env if name not in record.help)}",
    ]
    said = "; ".join(part for part in parts if part and not part.endswith(": "))
    return f" [{said}]" if said else ""


def shown(value: Any) -> str:
    """A default in words."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)
