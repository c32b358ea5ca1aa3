"""Recipes and command lines made wrong at random end in one line, or are what they say."""

from benchmarks.fuzz_recipes import case_of, fuzz


def test_mutated_recipes_and_command_lines_are_refused_in_one_line_or_hold_their_ranges() -> None:
    counts, faults = fuzz(60, seed=7)
    assert faults == []
    assert counts.total() == 60
    assert counts["refused"] > 20


def test_a_case_is_its_number_and_its_seed() -> None:
    assert str(case_of(3, 1)) == str(case_of(3, 1)) != str(case_of(4, 1))
