"""The checked-in modules are what the protocol file gives."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = ("link_pb2.py", "link_pb2.pyi", "link_pb2_grpc.py")


def test_the_generated_modules_are_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools makes the modules")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "pyi")]
    command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", "-I", ".typings"]

    subprocess.run([*command, *outputs, "discreet/common/link.proto"], cwd=ROOT, check=True)

    made = tmp_path / "discreet" / "common"
    stale = [n for n in MADE if (made / n).read_text() != (ROOT / "common" / n).read_text()]
    assert stale == [], "run `make proto`"


def test_the_generated_modules_import_by_their_full_name() -> None:
    text = (ROOT / "common" / "link_pb2_grpc.py").read_text()

    assert "from discreet.common import link_pb2" in text
