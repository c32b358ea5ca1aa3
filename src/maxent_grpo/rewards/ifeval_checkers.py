"""The checkers of IFEval's 25 instruction types: lm-eval's, with the data that they need found offline.

Importing this module makes them ready. Left to itself, lm-eval would try to download the sentence splitter's data.
"""

from typing import Any

from maxent_grpo.rewards.ifeval import ensure_ifeval

ensure_ifeval()

import langdetect  # noqa: E402
from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT  # noqa: E402

langdetect.DetectorFactory.seed = 0  # its verdict on a text is random otherwise

INSTRUCTIONS: dict[str, Any] = dict(INSTRUCTION_DICT)
"""Instruction id → the class of its checker."""
