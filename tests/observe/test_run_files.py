from maxent_grpo.observe.run_files import git_sha


def test_git_sha_prefers_the_environment():
    assert git_sha({"MAXENT_GIT_SHA": "cafe"}) == "cafe"
    assert git_sha({})
