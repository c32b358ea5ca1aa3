"""Imported once by the process that `forked` forks from: the modules of every command, and what loading caches.

Loading the first policy costs Transformers a second of regular expressions; DeepSpeed imports a compiler when it
makes its first engine, seconds more.
"""

from importlib import import_module
from importlib.util import find_spec

from maxent_grpo.models.loading import ModelSource, load_policy, load_tokenizer

MODULES = [
    "peft",
    "torch.distributed.checkpoint._fsspec_filesystem",
    "maxent_grpo.cli.compose",
    "maxent_grpo.cli.main",
    "maxent_grpo.evaluate.math_eval",
    "maxent_grpo.train.strategies.fsdp2",
    "maxent_grpo.train.run",
]
if find_spec("deepspeed") is not None:
    MODULES += ["deepspeed.runtime.zero.muon.muon_optimizer", "maxent_grpo.train.strategies.zero"]

for module in MODULES:
    import_module(module)
load_policy(ModelSource("bundled:tiny-policy"))
load_tokenizer(ModelSource("bundled:tiny-policy"))
