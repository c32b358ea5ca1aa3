"""Inside the math grader: from a completion's text to an answer, and from two answers to a verdict.

``extraction`` finds the final answer in a text; ``spelling`` brings TeX, Unicode and plain text to one
spelling; ``syntax`` parses that into ``expressions``; ``evaluation`` gives them values; ``comparison``
says whether two of them are one answer; ``symbolic`` asks math-verify about what none of these could read.
"""
