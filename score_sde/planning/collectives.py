"""What the devices send each other in a compiled program, read from its text (HLO)."""

import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8}


def collectives(program: str) -> dict[str, float]:
    """Bytes of the results of a program's collectives, by kind.

    An asynchronous one is counted where it starts, for its result alone; one in a loop as often as the loop is known to
    run.
    """
    parts = _computations(program)
    entry = next((name for name, (is_entry, _) in parts.items() if is_entry), None)
    total = dict.fromkeys(KINDS, 0.0)
    for name, times in _times(parts, entry).items():
        for line in parts[name][1]:
            kind, size = _collective(line)
            if kind:
                total[kind] += times * size
    return {kind: size for kind, size in total.items() if size}


def _computations(program: str) -> dict[str, tuple[bool, list[str]]]:
    """Name -> (whether it is the entry, its lines)."""
    parts: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{\s*$", line)
        if head:
            lines = []
            parts[head.group(2)] = (bool(head.group(1)), lines)
        else:
            lines.append(line)
    return parts


def _times(parts: dict[str, tuple[bool, list[str]]], name: str | None, times: float = 1.0) -> dict[str, float]:
    """How often each computation runs that this one leads to."""
    if name not in parts:
        return {}
    found = {name: times}
    for line in parts[name][1]:
        repeated = re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', line)
        for role, called in re.findall(r"(body|condition|calls|to_apply|branch_computations)=\{?%?([\w.-]+)", line):
            often = float(repeated.group(1)) if repeated and role == "body" else 1.0
            for inner, more in _times(parts, called, times * often).items():
                found[inner] = found.get(inner, 0.0) + more
    return found


def _collective(line: str) -> tuple[str | None, float]:
    found = re.match(rf"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
    if not found:
        return None, 0.0
    shape, kind, starts = found.groups()
    if starts and kind != "all-reduce":  # (operands, results, ...)
        shape = _elements(shape)[1]
    return kind, sum(_size(*each) for each in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape))


def _elements(shape: str) -> list[str]:
    """The elements of a tuple's shape, outside of inner brackets."""
    elements, depth, begin = [], 0, 1
    for i, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            elements.append(shape[begin:i])
            begin = i + 1
    return elements


def _size(kind: str, shape: str) -> float:
    return BYTES.get(kind, 0) * math.prod(int(size) for size in shape.split(",") if size)
