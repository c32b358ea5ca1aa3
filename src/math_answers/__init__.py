"""Whether a text's final mathematical answer is the right one: `grade` a completion, or compare two answers.

    >>> from math_answers import GraderPolicy, equivalent, grade
    >>> grade(r"… so the roots are $\\boxed{1 \\pm \\sqrt{19}}$.", r"1+\\sqrt{19}, 1-\\sqrt{19}").right
    True

A package of its own beside `maxent_grpo`, of which it imports nothing. From the text inwards: `extraction` finds
the answer, `spelling` and `words` write it one way, `tokens`, `operands` and `parser` read it into `expressions`;
`comparison` decides, by way of `sets`, `matrices`, `relations`, `values` and `evaluation`; `policy` holds the
conventions.
"""

from math_answers.extraction import Extracted, boxes, extract, reply, tagged
from math_answers.grading import Gold, Verdict, equivalent, grade, preload
from math_answers.policy import GRADER_VERSION, GraderPolicy, PolicyError

__all__ = [
    "GRADER_VERSION",
    "Extracted",
    "Gold",
    "GraderPolicy",
    "PolicyError",
    "Verdict",
    "boxes",
    "equivalent",
    "extract",
    "grade",
    "preload",
    "reply",
    "tagged",
]
