"""The accelerator benchmark on a CPU, with the smallest models."""

import json
import subprocess
import sys

import pytest

from tests.cli import ROOT, environment


@pytest.mark.slow
def test_every_part_keeps_what_it_found(tmp_path):
    """Results of complete and of stopped benchmarks are in both files, and the program itself succeeds."""
    command = [sys.executable, "benchmarks/accelerator.py", "--tiny", f"--output={tmp_path}"]
    options = ["--minutes=3", "--parts=attention,larger"]
    subprocess.run([*command, *options], cwd=ROOT, env=environment(), check=True, timeout=500, capture_output=True)
    findings = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    attention = [finding for finding in findings if finding["part"] == "attention"]
    assert {row["forward mode"] for row in attention if "forward mode" in row} == {"yes"}
    assert attention[-1]["exit"] == 0
    assert len([row for row in findings if "ms a step" in row]) >= 1  # of a batch that was doubled, or the first one
    table = (tmp_path / "findings.md").read_text().splitlines()
    assert table[:2] == ["| part | finding |", "| --- | --- |"] and len(table) == 2 + len(findings)
    assert (tmp_path / "attention.log").is_file()


@pytest.mark.slow
def test_a_part_that_takes_too_long_costs_only_itself(tmp_path):
    command = [sys.executable, "benchmarks/accelerator.py", "--tiny", f"--output={tmp_path}", "--minutes=0.8"]
    subprocess.run([*command, "--parts=correctness,attention"], cwd=ROOT, env=environment(), check=True, timeout=200)
    findings = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    ends = {finding["part"]: finding for finding in findings if "exit" in finding or "skipped" in finding}
    assert ends["correctness"]["exit"] != 0 and "at its limit" in ends["correctness"]["stopped"]
    assert ends["attention"] == {"part": "attention", "at": 0.0, "skipped": "no time left"}


@pytest.mark.slow
def test_a_cpu_passes_all_checks():
    """All checks of a device, with one network, on two virtual ones, so that pmap and fsdp are compared."""
    command = [sys.executable, "benchmarks/device_checks.py", "--networks=dit"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(2), capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fsdp and one device" in done.stdout
