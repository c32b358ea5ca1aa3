"""The commands that README and docs print, and how each is checked. A command that no rule knows fails the tests."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("bash", "sh", "shell", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str  # path below the root
    line: int  # of its fence
    language: str  # "" where the fence names none
    title: str  # of title="…"; "" where there is none
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class NotRun:
    """A command that no test runs, and why not."""

    reason: str


@dataclass(frozen=True)
class RunBy:
    """A command that a test of its own runs."""

    test: str  # path below the root


@dataclass(frozen=True)
class Checked:
    """A command that `test_documented_commands` runs in the way ``how`` names."""

    how: str


Rule = NotRun | RunBy | Checked

RULES: tuple[tuple[str, Rule], ...] = (
    # Patterns of commands, and what programs answer
    (r".*(…|(?<![\w.-])\$?(RECIPE|MODEL|RUN|FILE|DIR|ADDRESS)\b)", NotRun("capitals stand for the reader's own")),
    (r"maxent-grpo: ", NotRun("an answer of the program, not a command")),
    (r".*\bpip install|python -m venv", NotRun("installs from a package index")),
    # Console scripts
    (r"maxent-grpo.* --?h(elp)?\b", Checked("help")),
    (r"maxent-grpo(-study)? .*study\.plan=", Checked("study")),
    (r"PYTHONPATH=\. .*recipe=recipe\.yaml", RunBy("tests/docs/test_new_objective_guide.py")),
    (r"PYTHONPATH=\. maxent-grpo-math-eval .*backend: ", RunBy("tests/docs/test_extending.py")),
    (r"maxent-grpo command=demo-llm", RunBy("tests/cli/test_demo_llm.py")),
    (r"maxent-grpo command=demo", RunBy("tests/cli/test_demo.py")),
    (r"maxent-grpo command=fetch-model", RunBy("tests/models/test_model_location.py")),
    (r"maxent-grpo command=report", RunBy("tests/docs/test_getting_started.py")),
    (r"(maxent-grpo-(generate|vllm-proxy)|python -m maxent_grpo\.generate) ", Checked("help of console")),
    (r"maxent-grpo-sync optimizer\.lr=1e-4 learning_rate=1e-5", NotRun("shows a request that is refused")),
    (r"maxent-grpo(-math-eval|-inference| command=(math-eval|math_eval|inference)).*", Checked("evaluation")),
    (r"maxent-grpo(-baseline|-maxent|-infoseed|-sync|-async)? ", Checked("plan")),
    (r"torchrun .*--distributed (fsdp2|zero2|zero3) ", RunBy("tests/train/test_strategies.py")),
    (r"(torchrun|accelerate launch|python) .*-m maxent_grpo\.(grpo|maxent_grpo|infoseed) ", Checked("flags")),
    (r"maxent-grpo-tiny-policy ", NotRun("minutes: trains the bundled policy from scratch")),
    # Programs of the repository
    (r"python (tools|ops|docs|benchmarks|examples)/\S+\.py", Checked("file")),
    (r"python -m benchmarks\.", Checked("module")),
    (r"make ", Checked("make")),
    (r"bash ops/slurm/.* --dry-run", RunBy("tests/docs/test_slurm_guide.py")),
    (r"(bash )?(\./)?ops/\S+", Checked("file")),
    # Tools of the developer
    (r"sphinx-build ", RunBy("tests/docs/test_site.py")),
    (r"(pytest|ruff|mypy|lint-imports|pre-commit run)\b", NotRun("runs the tests; make test runs it")),
    (r"pre-commit install", NotRun("writes into .git/hooks")),
    (r"(var/venv/bin/)?(pip|python -m pip) install ", NotRun("needs a package index, minutes")),
    (r"(source|conda|export|cd|mkdir|touch|cp|rm|ls|cat|tail|kill|git) ", NotRun("the shell's own, or a checkout")),
    # What is not on a machine without accelerator, cluster or hub
    (r"(hf|huggingface-cli) ", NotRun("needs the hub")),
    (r"(sbatch|srun|squeue|scancel|sinfo|salloc|SLURM_CONF=\S+) ?", NotRun("needs Slurm")),
    (r"(vllm|CUDA_VISIBLE_DEVICES=\S+ vllm|VLLM\w*=\S+ .*vllm) ", NotRun("needs a vLLM server")),
    (r"ray ", NotRun("needs a Ray cluster")),
    (r"curl ", NotRun("needs a server")),
)  # fmt: skip
"""Pattern of a command's beginning → how it is checked; the first that fits."""


def pages() -> list[Path]:
    """README and CONTRIBUTING, and what docs/ holds, decisions apart: they record what was, not what to type."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found += sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "decisions")
    return found


def blocks() -> Iterator[Block]:
    """Every fenced block of every page, Sphinx's directives apart."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^( *)```([^\n`]*)\n(.*?)^\1```$", text, flags=re.DOTALL | re.MULTILINE):
            info = match[2].strip()
            if info.startswith("{"):
                continue
            title = re.search(r'title="([^"]+)"', info)
            line = text[: match.start()].count("\n") + 1
            language = info.split()[0] if info else ""
            yield Block(str(page.relative_to(ROOT)), line, language, title[1] if title else "", match[3])


def command_lines(block: Block) -> list[str]:
    """The commands of a shell block, one string each, with variables that the block sets filled in."""
    variables: dict[str, str] = {}
    commands = []
    for line in block.text.replace("\\\n", " ").splitlines():
        command = re.split(r"(?:^|\s)#\s", line, maxsplit=1)[0].removeprefix("$ ").strip()
        assignment = re.fullmatch(r"([A-Z_]+)=(\S+)", command)
        if assignment:
            variables[assignment[1]] = assignment[2]
            continue
        for name, value in variables.items():
            command = re.sub(rf"\$\{{?{name}\b\}}?", value, command)
        commands += [part.strip() for part in command.split(" && ") if part.strip()]
    return [" ".join(command.split()) for command in commands]


def documented() -> dict[str, str]:
    """Every distinct command → where it first stands."""
    found: dict[str, str] = {}
    for block in blocks():
        if block.language in SHELL:
            for command in command_lines(block):
                found.setdefault(command, block.place)
    return found


def rule_of(command: str) -> Rule | None:
    return next((rule for pattern, rule in RULES if re.match(pattern, command + " ")), None)


def words(command: str) -> list[str]:
    return shlex.split(command)


Check = Callable[[str, Path], None]
