"""Jobs of the test's own cluster: submitted, watched, read."""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "ops" / "scripts" / "slurm_cluster.sh"
LOGS = ROOT / "var" / "artifacts" / "logs"
TOKEN = "hf_ThisTokenIsNotReal"


@dataclass
class Job:
    """A submitted job."""

    number: str
    slurm: "Slurm"

    def state(self) -> str:
        shown = self.slurm.run("scontrol", "show", "job", self.number).stdout
        found = re.search(r"JobState=(\w+)", shown)
        assert found, shown
        return found[1]

    def exit_code(self) -> str:
        shown = self.slurm.run("scontrol", "show", "job", self.number).stdout
        found = re.search(r"ExitCode=(\S+)", shown)
        assert found, shown
        return found[1]

    def wait_for(self, what: Callable[[], bool], seconds: float = 600) -> None:
        """Until ``what`` holds; what the job wrote is in the failure."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, (
                f"job {self.number} ({self.state()}) after {seconds} s\n{self.output()}"
            )
            time.sleep(0.3)

    def end(self, seconds: float = 600) -> str:
        """Wait for the end; its state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_for(lambda: self.state() in ended, seconds)
        return self.state()

    def start_again(self) -> None:
        """Have a requeued job start soon. Slurm waits two minutes, until its nodes have forgotten the first start.

        A node refuses a start in the second in which it ended the job before ("already killed, do not launch batch
        job"), and the job fails: two seconds must lie between, and three do.
        """
        self.slurm.run("scontrol", "update", f"JobId={self.number}", "StartTime=now+3seconds")

    def output(self) -> str:
        """All that the job wrote into the folder of logs."""
        mine = [p for p in sorted(LOGS.iterdir()) if re.search(rf"[-_]{self.number}\b", p.name)]
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')}" for p in mine)


@dataclass
class Slurm:
    """Commands against the test's own cluster."""

    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, (command, answer.stderr)
        return answer

    def submit(self, *words: str) -> Job:
        return Job(self.run("sbatch", "--parsable", *words).stdout.strip(), self)
