"""``python -m maxent_grpo.generate --hf-dataset … --model …``, or with ``generate.args.KEY=VALUE``."""

import sys

from maxent_grpo.cli.main import generate

if __name__ == "__main__":
    sys.exit(generate())
