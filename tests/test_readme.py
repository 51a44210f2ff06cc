"""The README's examples run as they are printed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def test_python_examples(folder: Path) -> None:
    examples = blocks("python")
    assert examples
    for example in examples:
        run([sys.executable, "-c", example], folder)


def test_commands(folder: Path) -> None:
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("tqindex ")]
    assert len(lines) >= 4
    output = "".join(run([sys.executable, "-m", *shlex.split(line)], folder) for line in lines)
    assert "recall@10" in output
    assert re.search(r"^ok ", output, flags=re.MULTILINE)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"make ([\w-]+)", README))
    assert named >= {"demo", "test"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
