"""The part of the build that pyproject.toml cannot say: a wheel carries conf/ as dynarank/conf."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONF = Path("conf")


class BuildWithConf(build_py):
    """Build the modules, and copy conf/ beside them. An editable install reads conf/ in place."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "dynarank" / "conf"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(CONF, target)


setup(cmdclass={"build_py": BuildWithConf})
