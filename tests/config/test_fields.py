import dataclasses
import subprocess
import sys

from maxent_grpo.config.fields.script import ScriptFields
from maxent_grpo.config.fields.training import TrainingFields


def test_reading_the_fields_loads_neither_torch_nor_trl() -> None:
    code = (
        "import sys, maxent_grpo.config.fields.script, maxent_grpo.config.fields.training\n"
        "heavy = {'torch', 'trl', 'transformers', 'omegaconf', 'yaml', 'datasets'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_setting_has_one_sentence_of_help() -> None:
    for setting in (*dataclasses.fields(ScriptFields), *dataclasses.fields(TrainingFields)):
        text = setting.metadata["help"]
        assert text.endswith("."), setting.name
        assert len(text) < 220, setting.name


def test_list_defaults_are_not_shared() -> None:
    ScriptFields().reward_funcs.append("mine")
    assert ScriptFields().reward_funcs == ["pure_accuracy_math"]
