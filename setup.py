"""Carries the shipped configuration files into the wheel; everything else is in pyproject.toml.

They lie in ``configs/``, where people look for them, and setuptools packs only what lies in the package. So the build
copies them to ``maxent_grpo/shipped/``, where `maxent_grpo.config.shipped` finds them.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("accelerate", "prompts", "recipes", "study")


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the checkout has them
        for folder in SHIPPED:
            target = Path(self.build_lib, "maxent_grpo", "shipped", folder)
            shutil.copytree(Path("configs", folder), target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
