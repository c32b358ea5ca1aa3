"""Plans: recipes and flags in, command lines and tables out. Nothing is started."""

import shlex
from pathlib import Path

import pytest

import maxent_grpo.launch.train as launch_train
from maxent_grpo.errors import UsageError
from maxent_grpo.launch.allocation import Allocation
from maxent_grpo.launch.evaluation_jobs import FLAGS as EVALUATION_FLAGS
from maxent_grpo.launch.evaluation_jobs import math_eval_command, slots
from maxent_grpo.launch.flags import flag_value, read_flags
from maxent_grpo.launch.lighteval import lighteval_command
from maxent_grpo.launch.plan_text import shown_words, without_values
from maxent_grpo.launch.ray_cluster import FLAGS as RAY_FLAGS
from maxent_grpo.launch.ray_cluster import packed, plan_ray, with_token
from maxent_grpo.launch.supervision import job_environment
from maxent_grpo.launch.train import (
    FLAGS,
    TrainPlan,
    grid_points,
    plan_training,
    point_name,
    point_words,
    training_table,
)

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_ThisTokenIsNotReal"


def plan(line: str, nodes: int = 1, gpus: int = 8, restarts: int = 0, **environ: str) -> TrainPlan:
    given = Allocation(tuple(f"n{i}" for i in range(nodes)), tuple(map(str, range(gpus))), "7", restarts)
    return plan_training(read_flags(FLAGS, shlex.split(line), environ), given, ROOT, "python")


def after(command: tuple[str, ...], flag: str) -> str:
    line = shlex.split(command[-1]) if command[0] == "srun" and "bash" in command else list(command)
    return line[line.index(flag) + 1]


SERVER = "--args '--use_vllm true --vllm_mode server'"
TRL_SERVER = f"{SERVER[:-1]} --force_custom_loop false'"


def test_the_documented_line_trains_the_math_recipe_under_zero3() -> None:
    made = plan(
        "--model Qwen2.5-1.5B-Instruct --task grpo --config math --accelerator zero3 "
        '--args "--run_name demo --report_to wandb"'
    )
    command = made.trainer.command
    assert after(command, "--config_file") == str(ROOT / "configs/accelerate/zero3.yaml")
    assert after(command, "--num_processes") == "8"
    assert after(command, "--config") == str(
        ROOT / "configs/recipes/Qwen2.5-1.5B-Instruct/grpo/config_math.yaml"
    )
    assert command[-4:] == ("--run_name", "demo", "--report_to", "wandb")
    assert made.trainer.log == Path("var/artifacts/logs/train_7.log")
    assert made.server is None


@pytest.mark.parametrize(
    ("task", "module", "folder"),
    [
        ("grpo", "maxent_grpo.grpo", "grpo"),
        ("maxent", "maxent_grpo.maxent_grpo", "maxent-grpo"),
        ("maxent-grpo", "maxent_grpo.maxent_grpo", "maxent-grpo"),
        ("infoseed", "maxent_grpo.infoseed", "infoseed"),
        ("info-seed", "maxent_grpo.infoseed", "infoseed"),
    ],
)
def test_a_task_chooses_recipe_and_trainer(task: str, module: str, folder: str) -> None:
    command = plan(f"--task {task}").trainer.command
    recipe = command.index("--config")
    assert command[recipe - 2 : recipe] == ("-m", module)
    assert Path(command[recipe + 1]).parent.name == folder


def test_a_server_beside_the_trainer_gets_gpu_0_and_the_trainer_its_address() -> None:
    made = plan(
        f"--tp 1 --vllm-port 1234 {SERVER}", VLLM_MEM_UTIL="0.8", VLLM_MAX_LEN="4096", VLLM_GROUP_PORT="99"
    )
    assert made.server is not None
    assert made.server.step.environment == {
        "CUDA_VISIBLE_DEVICES": "0",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    assert (
        after(made.server.step.command, "--middleware")
        == "maxent_grpo.rollout.vllm.client_tag.EchoMiddleware"
    )
    assert made.trainer.environment == {"CUDA_VISIBLE_DEVICES": "1,2,3,4,5,6,7"}
    assert made.server.health == "http://127.0.0.1:1234/health"
    assert made.server.step.log == Path("var/artifacts/logs/vllm-7.out")
    assert after(made.server.step.command, "--gpu-memory-utilization") == "0.8"
    assert after(made.server.step.command, "--max-model-len") == "4096"
    assert after(made.trainer.command, "--vllm_server_port") == "1234"
    assert after(made.trainer.command, "--vllm_group_port") == "99"
    assert after(made.trainer.command, "--num_processes") == "7"
    assert "VLLM_PORT" in made.server.step.without


@pytest.mark.parametrize(
    ("line", "nodes", "host", "health", "keyed", "takes_weights"),
    [
        (f"--task maxent {SERVER}", 1, "127.0.0.1", "127.0.0.1", True, True),
        (f"--task maxent {SERVER}", 2, "n1", "n1", True, True),
        (f"--vllm-host 0.0.0.0 --task maxent {SERVER}", 2, "0.0.0.0", "n1", True, True),
        (f"--vllm-host 10.9.8.7 --task maxent {SERVER}", 2, "10.9.8.7", "10.9.8.7", True, True),
        (f"--task maxent {SERVER[:-1]} --vllm_sync_weights false'", 1, "127.0.0.1", "127.0.0.1", True, False),
        (SERVER, 1, "127.0.0.1", "127.0.0.1", True, True),
        (TRL_SERVER, 1, "127.0.0.1", "127.0.0.1", False, True),  # TRL's client sends no key
    ],
)
def test_a_server_listens_where_the_trainer_is_and_opens_no_more_than_it_must(
    line: str,
    nodes: int,
    host: str,
    health: str,
    keyed: bool,
    takes_weights: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch_train, "address_of", lambda node: node)
    made = plan(f"--dp {8 if nodes > 1 else 1} {line}", nodes=nodes)
    assert made.server is not None
    command = list(made.server.step.command)
    assert command[command.index("--host") + 1] == host
    assert made.server.health == f"http://{health}:29525/health"
    assert (made.server.asks_for_key, launch_train.ASK_FOR_KEY in command) == (keyed, keyed)
    opened = {
        **made.server.step.environment,
        **dict(w.split("=", 1) for w in command if w.startswith("VLLM_")),
    }
    assert ("VLLM_SERVER_DEV_MODE" in opened) == takes_weights


def test_the_key_of_a_job_is_new_and_stands_in_the_environment_alone() -> None:
    made = plan(f"--task maxent {SERVER}")
    first, second = (launch_train.with_key(made, {"PATH": "/bin"})["VLLM_API_KEY"] for _ in range(2))
    assert first != second
    assert len(first) > 40
    assert launch_train.with_key(made, {"VLLM_API_KEY": "mine"})["VLLM_API_KEY"] == "mine"
    assert made.server is not None
    words = [*made.server.step.command, *made.trainer.command, *made.server.step.environment.values()]
    assert not any(first in word or "api-key" in word for word in words)
    shown = training_table(made, {"VLLM_API_KEY": first})
    assert first not in shown
    assert "API key       that of VLLM_API_KEY, not shown" in shown
    assert "VLLM_API_KEY" not in launch_train.with_key(plan(TRL_SERVER), {})


def test_several_nodes_train_in_one_step_and_the_last_serves() -> None:
    made = plan(f"--dp 8 {SERVER}", nodes=3)
    assert made.server is not None
    assert "--nodelist=n2" in made.server.step.command
    assert made.server.health == "http://n2:29525/health"
    assert {"--nodelist=n0,n1", "--ntasks=2", "--kill-on-bad-exit=1"} <= set(made.trainer.command)
    line = made.trainer.command[-1]
    assert '--machine_rank "$SLURM_PROCID" --main_process_ip n0' in line
    assert "--num_processes 16" in line
    assert "--vllm_server_host n2" in line


def test_trls_server_takes_its_own_flags() -> None:
    made = plan(SERVER, VLLM_SERVER_IMPL="trl", VLLM_MODEL="other/model")
    assert made.server is not None
    assert made.server.step.command[1:5] == ("-m", "trl.scripts.vllm_serve", "--model", "other/model")
    assert after(made.server.step.command, "--data_parallel_size") == "1"


def test_a_server_that_somebody_else_runs_is_used_and_every_gpu_trains() -> None:
    made = plan("--args '--use_vllm true --vllm_mode server --vllm_server_base_url http://far:8000'")
    assert (made.server, made.health) == (None, "http://far:8000/health")
    assert after(made.trainer.command, "--num_processes") == "8"
    assert "--vllm_server_host" not in made.trainer.command


def test_vllm_mode_of_the_environment_wins_over_the_recipe_and_reaches_the_trainer() -> None:
    made = plan("--args '--use_vllm true'", VLLM_MODE="colocate")
    assert made.server is None
    assert after(made.trainer.command, "--vllm_mode") == "colocate"


def test_torchrun_leaves_the_strategy_to_the_recipe() -> None:
    command = plan("--accelerator torchrun", gpus=2, MASTER_PORT="6001", ACC_TEE="1").trainer.command
    assert command[:3] == ("python", "-m", "torch.distributed.run")
    assert after(command, "--nproc-per-node") == "2"
    assert (after(command, "--master-port"), after(command, "--tee")) == ("6001", "1")


def test_a_restarted_job_resumes_and_a_first_start_does_not() -> None:
    assert "--resume_from_checkpoint" not in plan("").trainer.command
    assert plan("", restarts=1).trainer.command[-2:] == ("--resume_from_checkpoint", "true")
    assert plan("--resume").trainer.command[-2:] == ("--resume_from_checkpoint", "true")
    chosen = plan("--args '--resume_from_checkpoint /x/checkpoint-3'", restarts=1)
    assert chosen.trainer.command.count("--resume_from_checkpoint") == 1


def test_flags_win_over_variables_and_the_table_says_which() -> None:
    values = read_flags(FLAGS, ["--dp", "2"], {"DP": "3", "TP": "4"})
    assert (values["dp"], values.sources["dp"]) == ("2", "--dp")
    assert (values["tp"], values.sources["tp"]) == ("4", "TP")
    assert values.sources["model"] == "default"


def test_the_table_shows_the_split_and_no_secret() -> None:
    made = plan(f"{SERVER[:-1]} --hub_token {TOKEN} --wandb_project {TOKEN}'")
    shown = training_table(made, {"HF_TOKEN": TOKEN})
    assert "n0  GPU 1-7  trains, 7 process(es)" in shown
    assert "n0  GPU 0    serves vLLM" in shown
    assert "HF_TOKEN      forwarded, not shown" in shown
    assert TOKEN not in shown
    assert "--hub_token ***" in shown


@pytest.mark.parametrize(
    ("line", "environ", "message"),
    [
        ("--modle x", {}, "--modle: no such option"),
        ("--model nothing", {}, "there is no such recipe; there are "),
        ("--task sft", {}, "--task sft: one of grpo"),
        ("--accelerator zero9", {}, "--accelerator zero9"),
        ("--dp 0", {}, "--dp=0: a whole number"),
        ("", {"VLLM_MODE": "none", "TRAIN_ARGS": "--use_vllm"}, "vllm_mode=none"),
        ("--args 'a \"b'", {}, "--args"),
        ("--recipe x.yaml --model y", {}, "both name a recipe"),
        ("", {"GRPO_RECIPE": "gone.yaml"}, "GRPO_RECIPE=gone.yaml: there is no such recipe"),
        (SERVER, {"VLLM_MEM_UTIL": "1.5"}, "VLLM_MEM_UTIL=1.5"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(
    line: str, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan(line, **environ)


def test_flag_values_are_found_in_every_spelling() -> None:
    words = ["--a", "1", "--b-c=2", "--d", "--no_e", "--a", "3"]
    assert [flag_value(words, name) for name in ("a", "b_c", "d", "e", "f")] == [
        "3",
        "2",
        "true",
        "false",
        None,
    ]


def test_caches_lie_under_var_and_a_stored_token_is_still_found(tmp_path: Path) -> None:
    stored = tmp_path / ".cache" / "huggingface" / "token"
    stored.parent.mkdir(parents=True)
    stored.touch()
    made = job_environment({"HOME": str(tmp_path), "TORCH_HOME": "/mine"}, Path("/repo"))
    assert made["HF_HOME"] == "/repo/var/cache/huggingface"
    assert made["TORCH_HOME"] == "/mine"
    assert made["HF_TOKEN_PATH"] == str(stored)
    assert "HF_TOKEN_PATH" not in job_environment({"HOME": str(tmp_path), "HF_TOKEN": "x"}, Path("/repo"))


def test_secrets_are_hidden_wherever_they_stand() -> None:
    environ = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": "abcdef123", "PATH": "/bin"}
    assert (
        shown_words(["x", "--hub_token", "y", "--hub_token=z", TOKEN], environ)
        == "x --hub_token *** --hub_token=*** ***"
    )
    assert without_values(f"Bearer {TOKEN} abcdef123 /bin", environ) == "Bearer *** *** /bin"


def test_an_evaluation_is_a_line_of_the_console_script() -> None:
    values = read_flags(EVALUATION_FLAGS, ["--model", "o/m", "--revision", "c929c65", "--top-p", "0.8"], {})
    command = math_eval_command(values, "aime24", "python")
    assert command[4] == (
        'inference.models=[{model_name_or_path:"o/m",revision:"c929c65",style:"grpo",'
        'system_prompt_file:"configs/prompts/math_system_prompt.txt",batch_size:1,max_new_tokens:768,top_p:0.8}]'
    )
    assert command[5:8] == [
        "inference.dataset=aime24",
        "inference.seeds=[0,1,2,3,4]",
        "inference.num_generations=8",
    ]


def test_gpus_are_dealt_to_evaluations() -> None:
    assert slots((), 1) == [()]
    assert slots(("0", "1", "2"), 1) == [("0",), ("1",), ("2",)]
    assert slots(("0", "1", "2"), 2) == [("0", "1")]
    with pytest.raises(UsageError, match="--gpus-per-process 4"):
        slots(("0", "1"), 4)


def test_lighteval_shards_or_copies_the_model() -> None:
    def settings(parallel: bool) -> str:
        return lighteval_command(["lighteval"], "t", "m", "main", Path("o"), parallel=parallel, gpus=4)[2]

    assert "tensor_parallel_size=4" in settings(True)
    assert "data_parallel_size=4" in settings(False)


def test_a_grid_has_every_combination_once_with_a_folder_of_its_own(tmp_path: Path) -> None:
    points = grid_points("task=grpo,maxent seed=0,1,2")
    assert len(points) == 6
    assert [point_name(p) for p in points[:2]] == ["seed=0,task=grpo", "seed=1,task=grpo"]
    words = ["--grid", "task=grpo,maxent seed=0,1,2", "--model", "tiny", "--config", "graph_coloring"]
    made = [point_words(p, i, words, {}, ROOT) for i, p in enumerate(points)]
    folders = {flag_value(shlex.split(w[-1]), "output_dir") for w in made}
    assert len(folders) == 6
    assert "var/data/tiny-graph_coloring-maxent-grpo/seed=2,task=maxent" in folders
    ports = [
        int(w[w.index(f"--{name}") + 1])
        for w in made
        for name in ("master-port", "vllm-port", "vllm-group-port")
    ]
    assert len(set(ports)) == 18
    for mistake in ("", "seed", "seed=", "seed=1 seed=2"):
        with pytest.raises(UsageError, match="--grid"):
            grid_points(mistake)


def ray_plan(driver: str, nodes: int = 2, gpus: int = 4, restarts: int = 0):
    given = Allocation(tuple(f"n{i}" for i in range(nodes)), tuple(map(str, range(gpus))), "9", restarts)
    return plan_ray(
        read_flags(RAY_FLAGS, [], {}), driver.split(), given, "python", lambda n: f"10.0.0.{n[1:]}"
    )


def test_ray_has_its_head_on_the_first_node_and_a_worker_on_the_others() -> None:
    made = ray_plan("maxent-grpo-async mode=async", nodes=3)
    assert made.address == "10.0.0.0:6379"
    assert {"--nodelist=n0", "--head", "6379"} <= set(made.head.command)
    assert [step.command[4] for step in made.workers] == ["--nodelist=n1", "--nodelist=n2"]
    assert after(made.workers[1].command, "--node-ip-address") == "10.0.0.2"
    assert made.driver.environment["RAY_ADDRESS"] == made.address
    assert made.driver.command == ("maxent-grpo-async", "mode=async")
    assert ray_plan("x", restarts=2).driver.command == ("x", "resume_from_checkpoint=true")


def test_devices_that_are_not_there_are_refused_with_the_sum() -> None:
    ask = "x train_model.num_devices=6 ref_model.num_devices=1 inference_model.num_devices=2"
    with pytest.raises(
        UsageError, match=r"train_model 6 \+ ref_model 1 \+ inference_model 2 = 9 devices, and 2 .* = 8"
    ):
        ray_plan(ask)
    assert sum(count for _, count in ray_plan(ask, nodes=3).devices) == 9
    places = packed([("train_model", 3), ("inference_model", 1)], ["a", "b"], ["0", "1"])
    assert places == [
        ("train_model", "a", "GPU 0"), ("train_model", "a", "GPU 1"), ("train_model", "b", "GPU 0"),
        ("inference_model", "b", "GPU 1"),
    ]  # fmt: skip


def test_two_nodes_with_one_address_are_refused() -> None:
    given = Allocation(("a", "b"), (), "9")
    with pytest.raises(UsageError, match="each needs its own"):
        plan_ray(read_flags(RAY_FLAGS, [], {}), ["x"], given, "python", lambda _: "127.0.0.1")


def test_a_ray_cluster_has_a_secret_of_its_own_unless_one_is_given() -> None:
    first, second = with_token({}), with_token({})
    assert first["RAY_AUTH_MODE"] == "token"
    assert len({first["RAY_AUTH_TOKEN"], second["RAY_AUTH_TOKEN"]}) == 2
    assert without_values(first["RAY_AUTH_TOKEN"], first) == "***"
    assert with_token({"RAY_AUTH_MODE": "disabled"}) == {"RAY_AUTH_MODE": "disabled"}
    assert "RAY_AUTH_TOKEN" not in with_token({"RAY_AUTH_TOKEN_PATH": "/x"})
