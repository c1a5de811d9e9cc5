"""`doctor` says what it found, and fails a machine that is not fit."""

import io
import json
import os
import time
from pathlib import Path

import pytest

from host.artifact.model_file import ModelError
from host.commands import doctor as module
from host.commands.doctor import check_cache, check_clock, check_packages, check_time_zones, doctor, print_doctor
from kernels import jit
from tests.fixtures.trained import Trained


def test_a_sound_machine_passes(trained: Trained) -> None:
    document = json.loads(json.dumps(doctor(trained.path)))
    names = [check["name"] for check in document["checks"]]
    assert names == ["packages", "cache", "clock", "time zones", "threads", "model", "self-test", "latency"]
    assert document["model"] == trained.loaded.sha256
    assert 0 < document["latency_us"]["p50"] <= document["latency_us"]["p99"] <= document["latency_us"]["max"]
    failed = [check["name"] for check in document["checks"] if not check["passed"]]
    assert failed in ([], ["latency"])  # a busy machine may be slow
    assert document["passed"] == (failed == [])
    out = io.StringIO()
    print_doctor(document, out)
    assert len(out.getvalue().splitlines()) == 1 + len(names)


def test_what_is_wrong_fails(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_P99_US", 0)
    assert not doctor(trained.path)["passed"]
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "no-such-package"))
    assert "pip install no-such-package" in check_packages()[0].text
    now = time.time()
    assert check_clock(trained.loaded, now).passed
    assert not check_clock(trained.loaded, now + 60).passed
    monkeypatch.setattr(module.time, "time", lambda: 1e9)
    late = check_clock(trained.loaded, 1e9)
    assert "file system" in late.text
    assert "training data" in late.text

    def unknown(name: str) -> None:
        raise module.ZoneInfoNotFoundError(name)

    monkeypatch.setattr(module, "ZoneInfo", unknown)
    assert "tzdata" in check_time_zones().text
    with pytest.raises(ModelError):
        doctor(Path("no/such/model.swt"))


def test_without_a_home_machine_code_goes_where_only_this_user_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jit.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("SWT_CACHE_DIR", "/dev/null/nowhere")
    uncached = jit.cache_root.__wrapped__
    private = tmp_path / f"swt-{os.getuid()}"
    assert uncached().parent == private
    assert private.stat().st_mode & 0o777 == 0o700
    assert "set SWT_CACHE_DIR" in capsys.readouterr().err
    private.chmod(0o777)
    stranger = uncached()  # anybody may have written there
    assert stranger.parent != private
    assert stranger.parent.stat().st_mode & 0o077 == 0
    monkeypatch.delenv("SWT_CACHE_DIR")
    monkeypatch.setattr(module, "cache_root", lambda: stranger)
    assert "set SWT_CACHE_DIR" in check_cache().text
