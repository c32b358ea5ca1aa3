"""Score the math grader on pairs of answers that others have judged.

    python -m benchmarks.grader PAIRS.jsonl… [--show] [--require] [--responses] [--policy KEY=VALUE]…
    python -m benchmarks.grader --golds DIRECTORY
    python -m benchmarks.grader --sweep

Pairs: JSON lines with ``gold``, ``pred`` (a final answer, or the whole text where ``cfg`` says how it was extracted),
``verdict`` (the source's), ``class`` and ``adjudicated_equal`` (true, false, or null where it depends on a convention).
Three scores: agreement on ``class == "undisputed"``; on the other pairs that are adjudicated; and, for information
only, with the source's verdict on the rest, where conventions differ. Rows with ``answer``, ``mode`` (``boxed``: the
answer stands in a box; ``text``: it is a whole response) and ``disputed`` are read, too.

Sweep: the pairs of `benchmarks.grader_sweep`, made by rule: every relation and operator against every other, negations,
exchanged sides and names, and spellings of one answer. None may be accepted that is unequal.

Golds: every gold of the benchmark files in DIRECTORY must accept itself in a box and reject five perturbed answers.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.grader_sweep import pairs
from benchmarks.perturbed_answers import perturbed
from math_answers import GraderPolicy, PolicyError, Verdict, boxes, equivalent, grade, preload
from maxent_grpo.errors import RunError, UsageError

UNDISPUTED_AIM = 0.995
ADJUDICATED_AIM = 0.97
REPORTS_AIM = 0.97  # of pairs that were collected because graders had failed on them
PERTURBATIONS = 5

# How the sources whose ``pred`` is a whole text took the answer out of it.
_EXTRACTION = {
    "latex": ("boxed", "math", "whole"),
    "latex+expr": ("boxed", "math", "whole"),
    "expr": ("last_number",),
    "gsm8k_reward_fn": ("boxed", "math", "last_number"),
    "geometry3k_reward_fn": ("boxed", "math", "last_number"),
}


@dataclass
class Tally:
    """Agreements and disagreements of one kind of pair."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, agrees: bool, line: str) -> None:
        self.right += agrees
        if not agrees:
            self.wrong.append(line)

    @property
    def size(self) -> int:
        return self.right + len(self.wrong)

    @property
    def share(self) -> float:
        return self.right / self.size if self.size else 1.0

    def __str__(self) -> str:
        return f"{100 * self.share:6.2f} % of {self.size:5d}" if self.size else "             –    "


@dataclass
class Report:
    """The scores of a file, or of several together."""

    undisputed: Tally = field(default_factory=Tally)
    adjudicated: Tally = field(default_factory=Tally)
    conventions: Tally = field(default_factory=Tally)
    false_accepts: list[str] = field(default_factory=list)
    false_rejects: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    seconds: float = 0.0
    verdicts: int = 0

    def merge(self, other: "Report") -> None:
        for name in ("undisputed", "adjudicated", "conventions"):
            ours, theirs = getattr(self, name), getattr(other, name)
            ours.right += theirs.right
            ours.wrong += theirs.wrong
        self.false_accepts += other.false_accepts
        self.false_rejects += other.false_rejects
        self.slowest = max(self.slowest, other.slowest)
        self.seconds += other.seconds
        self.verdicts += other.verdicts

    def line(self, name: str) -> str:
        return (
            f"{name:<36} {self.undisputed}  {self.adjudicated}  {self.conventions}  {len(self.false_accepts):3d}  "
            f"{len(self.false_rejects):3d}  {1000 * self.slowest[0]:7.0f} ms  "
            f"{self.verdicts / max(self.seconds, 1e-9):8.0f}/s"
        )


HEADER = (
    f"{'file':<36} {'undisputed':^19} {'adjudicated':^20} {'conventions':^20}   FA   FR     slowest  verdicts"
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file; `UsageError` if it is missing, empty or torn."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UsageError(f"{path}:{number}: no JSON ({error.msg})") from error
    if not rows:
        raise UsageError(f"{path}: the file is empty")
    return rows


def as_pair(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of reported failures with the columns of the other files."""
    if "answer" not in row or "pred" in row:
        return row
    kind = "disputed" if row.get("disputed") else "undisputed"
    text = row["answer"] if row.get("mode") == "text" else rf"\boxed{{{row['answer']}}}"
    return {**row, "pred": text, "class": kind, "cfg": {"fn": "as it is"}}


def policy_for(row: Mapping[str, Any], policy: GraderPolicy) -> tuple[GraderPolicy, bool]:
    """The policy for a pair, with what its source's test asked for, and whether ``pred`` is a whole text."""
    config = row.get("cfg") or {}
    name = config.get("extract") or config.get("fn")
    if name in _EXTRACTION:
        policy = replace(policy, extraction=_EXTRACTION[name])
    if "precision" in config:
        policy = replace(policy, significant_digits=min(policy.significant_digits, int(config["precision"])))
    return policy, name in _EXTRACTION or name == "as it is"


def verdict_on(row: Mapping[str, Any], policy: GraderPolicy, responses: bool) -> Verdict:
    """The grader's verdict on a pair: on its answers, on its text, or on the model's whole response."""
    if responses and row.get("response"):
        return grade(
            row["response"], row["gold"], replace(policy, extraction=("boxed", "phrase", "last_number"))
        )
    policy, is_text = policy_for(row, policy)
    return (grade if is_text else equivalent)(row["pred"], row["gold"], policy)


def score(rows: Sequence[Mapping[str, Any]], policy: GraderPolicy, responses: bool = False) -> Report:
    """Grade every pair and compare with what is known about it.

    Raises:
        UsageError: a row without one of the columns.
    """
    report = Report()
    for number, row in enumerate(map(as_pair, rows), 1):
        missing = [column for column in ("gold", "pred", "verdict", "class") if column not in row]
        if missing:
            raise UsageError(f"row {number}: no column '{missing[0]}'; these are not pairs with verdicts")
        start = time.perf_counter()
        verdict = verdict_on(row, policy, responses)
        seconds = time.perf_counter() - start
        undisputed = row["class"] == "undisputed"
        known = row["verdict"] if undisputed else row.get("adjudicated_equal")
        wanted = row["verdict"] if known is None else known
        pair = f"gold {row['gold']!r:.160} pred {row['pred']!r:.160}"
        line = f"{row.get('id', number)} [{row['class']}] {pair} ({verdict.reason})"
        kind = "undisputed" if undisputed else "conventions" if known is None else "adjudicated"
        getattr(report, kind).add(verdict.right == wanted, line)
        if known is not None and verdict.right != known:
            (report.false_accepts if verdict.right else report.false_rejects).append(line)
        report.slowest = max(report.slowest, (seconds, line))
        report.seconds += seconds
        report.verdicts += 1
    return report


def golds(directory: Path) -> Iterator[tuple[str, Any]]:
    """Name of the file and gold, for all golds of the benchmark files in a directory."""
    for path in sorted(directory.rglob("*.jsonl")):
        if "ifeval" in path.name or path.name.startswith(("IFBench", "input_")):
            continue
        for row in read_rows(path):
            gold = next(
                (row[name] for name in ("final_answer", "expected_answer", "answer") if name in row), None
            )
            if gold is None and (found := boxes(row.get("solution", ""))):
                gold = found[-1][2]
            if gold is not None:
                yield str(path.relative_to(directory)), gold


def gold_faults(gold: Any, policy: GraderPolicy) -> Iterator[str]:
    """What is wrong with the verdicts on one gold: alternatives that are not accepted, wrong answers that are."""
    alternatives = gold if isinstance(gold, list) else [str(gold).rpartition("####")[2].strip()]
    for answer in alternatives:
        if not grade(rf"Therefore \boxed{{{answer}}}.", gold, policy).right:
            yield f"rejects itself: {answer!r}"
        for wrong in perturbed(str(answer).strip(), PERTURBATIONS):
            if grade(rf"Therefore \boxed{{{wrong}}}.", answer, policy).right:
                yield f"{answer!r} accepts {wrong!r}"


def score_golds(directory: Path, policy: GraderPolicy) -> int:
    """Print a line per file and one per fault; the number of faults."""
    counts: dict[str, int] = defaultdict(int)
    faults: dict[str, list[str]] = defaultdict(list)
    for name, gold in golds(directory):
        counts[name] += 1
        faults[name] += gold_faults(gold, policy)
    if not counts:
        raise UsageError(f"{directory}: no benchmark files with golds")
    for name, count in counts.items():
        print(f"{name:<36} {count:5d} golds, {len(faults[name])} faults")
        for fault in faults[name]:
            print("   ", fault)
    return sum(map(len, faults.values()))


def score_sweep(policy: GraderPolicy, show: bool) -> int:
    """Print a line per rule; the number of unequal pairs that are accepted and of equal ones that are not."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    faults: list[str] = []
    slowest, begin = 0.0, time.process_time()
    for pair in pairs():
        start = time.perf_counter()
        right = equivalent(pair.pred, pair.gold, policy).right
        slowest = max(slowest, time.perf_counter() - start)
        counts[pair.rule][pair.same] += 1
        if right != pair.same:
            kind = "false accept" if right else "false reject"
            faults.append(f"{kind}: [{pair.rule}] gold {pair.gold!r} pred {pair.pred!r}")
    seconds = time.process_time() - begin
    for rule, (unequal, equal) in counts.items():
        print(f"{rule:<32} {unequal:6d} unequal {equal:5d} equal")
    total = sum(map(sum, counts.values()))
    print(
        f"sweep: {total} pairs, {len(faults)} faults, {total / seconds:.0f}/s, slowest {1000 * slowest:.0f} ms"
    )
    for fault in faults if show else faults[:20]:
        print(fault)
    return len(faults)


def parse_policy(assignments: Sequence[str]) -> GraderPolicy:
    """A policy from ``KEY=VALUE`` words; values are JSON or bare words, ``extraction`` is split at commas."""
    options: dict[str, Any] = {}
    kinds = {option.name: option.type for option in fields(GraderPolicy)}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--policy {assignment}: write KEY=VALUE")
        if key == "extraction":
            options[key] = tuple(value.split(","))
        elif kinds.get(key) in (str, "str"):
            options[key] = value
        else:
            try:
                options[key] = json.loads(value)
            except json.JSONDecodeError as error:
                raise UsageError(
                    f"--policy {assignment}: '{value}' is no number and no true or false"
                ) from error
    return GraderPolicy.from_dict(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grader", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PAIRS.jsonl")
    parser.add_argument(
        "--golds", type=Path, metavar="DIRECTORY", help="benchmark files: golds and perturbed golds"
    )
    parser.add_argument(
        "--policy", action="append", default=[], metavar="KEY=VALUE", help="an option of GraderPolicy"
    )
    parser.add_argument(
        "--responses", action="store_true", help="grade whole responses, where rows have them"
    )
    parser.add_argument("--sweep", action="store_true", help="pairs made by rule, equal and unequal ones")
    parser.add_argument("--show", action="store_true", help="list every false accept and false reject")
    parser.add_argument(
        "--require", action="store_true", help="exit with 1 below the aims (99.5 and 97 %%, no false accept)"
    )
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (UsageError, RunError, PolicyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2


def run(options: argparse.Namespace) -> int:
    """The benchmark itself: tables on standard output, and the exit code."""
    policy = parse_policy(options.policy)
    if not (options.paths or options.sweep) and options.golds is None:
        raise UsageError("nothing to grade: name files of pairs, a directory by --golds, or --sweep")
    preload()
    met = True
    if options.paths:
        total = Report()
        print(HEADER)
        aim = UNDISPUTED_AIM
        for path in options.paths:
            rows = read_rows(path)
            aim = REPORTS_AIM if "disputed" in rows[0] else aim
            report = score(rows, policy, options.responses)
            print(report.line(path.stem))
            total.merge(report)
        print(total.line("all"))
        print(f"policy {policy.fingerprint()}; slowest: {total.slowest[1]}")
        if options.show:
            for title, lines in (
                ("false accept", total.false_accepts),
                ("false reject", total.false_rejects),
            ):
                for line in lines:
                    print(f"{title}: {line}")
        met = total.undisputed.share >= aim and total.adjudicated.share >= ADJUDICATED_AIM
        met &= not total.false_accepts
    if options.sweep:
        met &= score_sweep(policy, options.show) == 0
    if options.golds is not None:
        met &= score_golds(options.golds, policy) == 0
    return 1 if options.require and not met else 0


if __name__ == "__main__":
    sys.exit(main())
