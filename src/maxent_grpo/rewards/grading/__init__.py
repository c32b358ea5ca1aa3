"""Inside the math grader: from a completion's text to an answer, and from two answers to a verdict.

Look first at ``comparison``: its `same` says whether two parsed answers are one, with the help of the rest.

- Text to answer: ``extraction`` finds the final answer in a text; ``spelling`` brings TeX, Unicode and plain
  text to one spelling.
- Answer to expression: ``syntax`` parses that into ``expressions``, by way of ``tokens`` and ``literals``;
  below its lists and relations are the sums of ``arithmetic``, and below those the ``operands``.
- Two expressions to a verdict: ``comparison`` sends relations to ``claims``, whatever has several parts to
  ``objects``, and from there single values to ``values``. ``definitions`` tells "x = 5" from an equation,
  ``intervals`` what an inequality bounds, ``units`` what a value is counted in, ``evaluation`` what number an
  expression is; ``pairing`` finds each answer its partner.
- ``policy`` holds the conventions; ``symbolic`` asks math-verify about what none of these could read.
"""
