"""What the process that trainings are forked from imports, and what it hides from them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import doctor
from tasks.zygote import SINGLE_THREADED

HIDING = """
import importlib.metadata, importlib.util
from tasks.zygote import HIDDEN, PRELOAD, hide
assert all(importlib.util.find_spec(name) for name in HIDDEN)
assert importlib.metadata.version("transformers") == "5.0.0"
hide(HIDDEN)
assert not any(importlib.util.find_spec(name) for name in HIDDEN)
from lightning_utilities.core.imports import RequirementCache
assert not any(RequirementCache(name) for name in HIDDEN)
assert RequirementCache("torch") and importlib.metadata.version("numpy")
for module in PRELOAD: importlib.import_module(module)
"""


def test_what_is_hidden_looks_as_if_it_were_not_installed(tmp_path: Path) -> None:
    """transformers, too, which torchmetrics imports where it is there, and which fails without scipy."""
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no scipy')")
    metadata = tmp_path / "transformers-5.0.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.0.0\n")
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    subprocess.run([sys.executable, "-c", HIDING], check=True, env={**os.environ, "PYTHONPATH": paths})


def test_the_doctor_sees_a_zygote_that_cannot_import_what_trainings_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in SINGLE_THREADED:  # it asks the libraries for one thread by itself
        monkeypatch.delenv(variable, raising=False)
    assert [(found.text, found.fault) for found in doctor.zygote()] == [("can be started", False)]
    (tmp_path / "lightning.py").write_text("raise ImportError('it needs scipy')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = doctor.zygote()
    assert found.fault
    assert found.text == "cannot be started: ImportError: it needs scipy"


SAME_ROUND = """
import os, selectors, signal, socket
from tasks.child import Child, End, Limits
from tasks.zygote import Zygote
control, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
zygote, pid = Zygote(control, print), os.fork()
if pid == 0:
    os._exit(0)
zygote.children[pid] = theirs
zygote.selector.register(theirs, selectors.EVENT_READ, lambda: zygote._command(pid))
mine.send(str(int(signal.SIGTERM)).encode())
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
events = zygote.selector.select()
zygote._reap()
for key, _ in events:
    key.data()
assert not zygote.children
assert Child(connection=mine, pid=pid).wait(Limits(timeout_s=10)) == End(code=0)
"""


def test_a_signal_for_a_training_that_has_just_ended_harms_nobody() -> None:
    """Its end and the message may come in one round of events, in this order."""
    subprocess.run([sys.executable, "-c", SAME_ROUND], check=True, timeout=60)
