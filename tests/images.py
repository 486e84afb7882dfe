"""Takes a Dockerfile's steps without Docker, in a folder of their own, and starts what the image would start."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT

STRANGER = 10001
"""The user that the images run as."""


def read_steps(path: Path) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


@dataclass
class Image:
    """What an image would hold, and how it would be started.

    Changed are the places of /app, /venv and /keys, which lie below `root`, and that uv may use its cache. Without
    root's rights everything belongs to who runs this, and runs as that user.

    Attributes:
        root: A new, empty folder that every user may enter.
        environment: The image's ENV, on top of nothing.
        command: ENTRYPOINT and CMD.
        health: Command of HEALTHCHECK.
        python: Stands in for the base image's; has no packages of ours.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    python: str = field(default_factory=lambda: _readable_python())

    @property
    def app(self) -> Path:
        return self.root / "app"

    def build(self, dockerfile: Path) -> None:
        """Take all steps."""
        for name in ("app", "tmp"):
            (self.root / name).mkdir()
        subprocess.run([self.python, "-m", "venv", self.root / "boot"], check=True)
        self.environment["PATH"] = f"{self.root}/boot/bin:/usr/bin:/bin"
        take = {"COPY": self._copy, "RUN": self._run, "ENV": self._set, "HEALTHCHECK": self._check}
        take |= {"ENTRYPOINT": self._start, "CMD": self._start}
        for instruction, argument in read_steps(dockerfile):
            if instruction in take:
                take[instruction](argument)
        (self.root / "tmp").chmod(0o777)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command as the image's user, in its folder and environment."""
        may_change = os.getuid() == 0 and not self.python.startswith(str(Path.home()))
        user = STRANGER if may_change else os.getuid()
        return subprocess.Popen(
            command,
            cwd=self.app,
            env={**self.environment, "TMPDIR": str(self.root / "tmp"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=user,
            group=user if may_change else None,
            extra_groups=[] if may_change else None,
        )

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        process = self.start(*command, **environment)
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    def _here(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(venv|app|keys)\b", rf"{self.root}/\1", text)

    def _copy(self, argument: str) -> None:
        if argument.startswith("--from"):  # both stages share one folder here
            return
        *sources, target = argument.split()
        for source in sources:
            place = self.app / (source if target == "./" else target)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)

    def _run(self, argument: str) -> None:
        script = self._here(argument).replace("--no-cache ", "")
        if os.getuid() != 0:
            script = script.replace(f"-o {STRANGER} -g {STRANGER}", "")
        # this machine's own settings of pip and uv hold while building, and only then
        settings = {**os.environ, **self.environment, "UV_PYTHON": self.python}
        done = subprocess.run(
            ["bash", "-ec", script], cwd=self.app, env=settings, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _set(self, argument: str) -> None:
        for pair in shlex.split(self._here(argument)):
            key, _, value = pair.partition("=")
            self.environment[key] = value.replace("$PATH", "/usr/bin:/bin")

    def _check(self, argument: str) -> None:
        self.health = json.loads(argument[argument.index("CMD") + len("CMD") :])

    def _start(self, argument: str) -> None:
        self.command += json.loads(argument)


def _readable_python() -> str:
    candidates = [shutil.which(f"python3.{minor}", path="/usr/bin:/usr/local/bin") for minor in (12, 11)]
    return next((path for path in candidates if path), sys.executable)
