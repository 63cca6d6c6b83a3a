"""The doctor tells what would run, and why the rest would not."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

from fastt2i import doctor


@pytest.fixture(autouse=True)
def measure_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """What measuring the loaders would find: `tests/data/test_choose.py` measures."""
    found = {"pillow": 900.0, "dali": 1234.4}
    monkeypatch.setattr("fastt2i.data.loaders.choose.measure_rates", lambda *arguments, **settings: found)


def test_it_names_every_implementation_with_its_reason() -> None:
    operators = doctor.examine()["operators on cpu"]
    convolutions = {"gated_conv2d", "upsample_gated_conv2d"}
    modulated = {f"modulated_{name}" for name in convolutions}
    assert (
        set(operators)
        == {"gate", "leaky_conv2d", "modulated_gated_block", "region_keyword_scores"} | convolutions | modulated
    )
    for found in operators.values():
        assert found["reference"] == "would run"
        assert found["triton"].startswith("cannot run: ")
    assert operators["upsample_gated_conv2d"]["torch"] == "would run"


def test_both_forms_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(["--json"])
    findings = json.loads(capsys.readouterr().out)
    doctor.main([])
    text = capsys.readouterr().out
    assert findings["versions"]["torch"] == torch.__version__
    assert "calls timed; the table is /" in findings["times of operators"]["cpu"]
    for section in findings:
        assert f"{section}\n" in text


def test_it_says_which_loader_would_run_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastt2i.data.loaders import dali

    monkeypatch.setattr(dali, "unavailable_reason", lambda: "it is not there")
    loaders = doctor.examine()["loaders"]
    assert loaders["auto"].endswith("; else pillow") and loaders["dali"] == "cannot run: it is not there"
    monkeypatch.setattr(dali, "unavailable_reason", lambda: "")
    loaders = doctor.examine()["loaders"]
    assert loaders["auto"].endswith("the faster one on the run's own images: dali on those below")
    assert loaders["dali"].startswith("would run: 1,234 img/s, decoded on the ")


def test_a_package_that_is_missing_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    find = doctor.importlib.util.find_spec
    missing = {"torch", "tokenizers"}
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    findings = doctor.examine()
    assert findings["operators"] == {"all": "cannot run: torch is not installed"}
    assert findings["language model"]["all-MiniLM-L6-v2"] == "cannot be loaded: torch is not installed"


def test_nvidias_apex_is_told_from_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("apex")
    other.__spec__ = doctor.importlib.machinery.ModuleSpec("apex", None)
    monkeypatch.setitem(sys.modules, "apex", other)
    assert "not NVIDIA Apex" in doctor.examine()["versions"]["apex"]
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = object
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    assert doctor.examine()["versions"]["apex"].startswith("NVIDIA Apex")
