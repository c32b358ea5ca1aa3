"""The script in the guide runs as printed."""

import re
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "trl.md"


def test_the_script_of_the_guide_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    names = {}
    exec(compile(script, str(GUIDE), "exec"), names)
    records = [record for record in names["trainer"].state.log_history if "weight_entropy" in record]
    assert names["trainer"].state.global_step == 2
    assert all(0.0 < record["weight_entropy"] <= 2.08 for record in records)  # ln 8
