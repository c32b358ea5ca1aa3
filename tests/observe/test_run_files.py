import math

from maxent_grpo.files import JsonlFile
from maxent_grpo.observe.run_files import git_sha, sample_rows
from maxent_grpo.types import Group, Prompt, Rollout


def group() -> Group:
    rollout = Rollout(
        prompt=Prompt(index=7, text="1+1=", token_ids=(1, 2), columns={}),
        token_ids=((3,), (4,)),
        logps=((-0.1,), (-0.2,)),
        texts=("2", "3"),
        finish_reasons=("stop", "length"),
        policy_version=0,
    )
    return Group(rollout, rewards={"right": (1.0, math.nan)}, utilities=(1.0, 0.0))


def test_a_row_holds_what_the_completion_was_worth():
    rows = sample_rows(3, group(), advantages=[0.5, -0.5], weights=[0.9, 0.1])
    assert rows[0] == {
        "step": 3,
        "prompt_index": 7,
        "prompt": "1+1=",
        "completion": "2",
        "rewards": {"right": 1.0},
        "utility": 1.0,
        "advantage": 0.5,
        "weight": 0.9,
        "finish_reason": "stop",
    }
    assert len(rows) == 2


def test_no_weights_and_no_score_are_null_in_the_file(tmp_path):
    log = JsonlFile(tmp_path / "completions.jsonl")
    for row in sample_rows(3, group(), advantages=[0.5, -0.5], weights=None):
        log.append(row)
    assert JsonlFile.read(log.path)[1]["weight"] is None
    assert JsonlFile.read(log.path)[1]["rewards"] == {"right": None}


def test_the_limit_takes_the_first_completions():
    assert [row["completion"] for row in sample_rows(1, group(), [0, 0], None, limit=1)] == ["2"]


def test_git_sha_prefers_the_environment():
    assert git_sha({"MAXENT_GIT_SHA": "cafe"}) == "cafe"
    assert git_sha({})
