"""The benchmark of accelerators on this machine's CPU, with the smallest models."""

import json
import subprocess
import sys

import pytest

from tests.cli import ROOT, environment


@pytest.mark.slow
def test_every_part_keeps_what_it_found(tmp_path):
    """One part whole, and one that has no time: what is found is in both files, and the program itself succeeds."""
    command = [sys.executable, "benchmarks/accelerator.py", "--tiny", f"--output={tmp_path}"]
    options = ["--minutes=3", "--parts=attention,growing"]
    subprocess.run([*command, *options], cwd=ROOT, env=environment(), check=True, timeout=400, capture_output=True)
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
    command = [sys.executable, "benchmarks/accelerator.py", "--tiny", f"--output={tmp_path}", "--minutes=0.5"]
    subprocess.run([*command, "--parts=correctness,attention"], cwd=ROOT, env=environment(), check=True, timeout=200)
    findings = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    ends = {finding["part"]: finding for finding in findings if "exit" in finding or "skipped" in finding}
    assert ends["correctness"]["exit"] != 0 and "after its" in ends["correctness"]["stopped"]
    assert ends["attention"] == {"part": "attention", "at": 0.0, "skipped": "no time was left"}
