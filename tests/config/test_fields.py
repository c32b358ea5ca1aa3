"""What the records hold, and that reading them is light."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from trl.trainer.grpo_config import GRPOConfig as TRLConfig

from maxent_grpo.config.records import ALL, OWN, RECORDS, fed
from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments, ModelConfig
from maxent_grpo.config.settings import ScriptFields
from maxent_grpo.config.trl_settings import INERT, READ, REFUSED, by_name

ROOT = Path(__file__).resolve().parents[2]


def test_reading_the_settings_loads_the_standard_library_alone() -> None:
    code = (
        "import sys, maxent_grpo.config.settings\n"
        "heavy = {'torch', 'trl', 'transformers', 'omegaconf', 'yaml', 'datasets', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_setting_has_one_sentence_of_help() -> None:
    for record in ALL:
        if record.name in OWN:
            assert record.help.endswith("."), record.name
            assert len(record.help) < 220, record.name


def test_list_defaults_are_not_shared() -> None:
    ScriptFields().reward_funcs.append("mine")
    assert ScriptFields().reward_funcs == ["pure_accuracy_math"]


def test_the_cached_fields_are_those_of_the_installed_trl() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import trl_fields
    finally:
        sys.path.pop(0)
    assert trl_fields.FILE.read_text() == trl_fields.text(), "run python tools/trl_fields.py"
    json.loads(trl_fields.text())


@pytest.mark.parametrize(
    ("section", "cls"), [("script", GRPOScriptArguments), ("training", GRPOConfig), ("model", ModelConfig)]
)
def test_the_light_sections_have_the_fields_of_the_classes_that_they_stand_for(
    section: str, cls: type
) -> None:
    assert list(RECORDS[section]) == [f.name for f in fields(cls) if f.init]


def test_what_the_tables_say_about_trl_is_about_its_fields_and_said_once() -> None:
    listed = [*READ.split(), *by_name(INERT), *by_name(REFUSED)]
    assert len(listed) == len(set(listed))
    assert set(listed) <= {f.name for f in fields(TRLConfig)}


def test_a_component_field_is_fed_by_one_setting() -> None:
    feeds = [record.feeds for record in ALL if record.feeds]
    assert len(feeds) == len(set(feeds))
    assert fed("entropy")["coef"] == "entropy_coef"
