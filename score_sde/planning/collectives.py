"""Communication volume of a compiled program, parsed from its HLO text."""

import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8}


def collectives(program: str) -> dict[str, float]:
    """Return the bytes of the results of a program's collectives, by kind.

    Only the start of an asynchronous collective counts, with its result. A collective in a loop counts once per
    iteration if the trip count is known, otherwise once.
    """
    computations = _computations(program)
    entry = next((name for name, (is_entry, _) in computations.items() if is_entry), None)
    total = dict.fromkeys(KINDS, 0.0)
    for name, trips in _trip_counts(computations, entry).items():
        for line in computations[name][1]:
            kind, size = _collective(line)
            if kind:
                total[kind] += trips * size
    return {kind: size for kind, size in total.items() if size}


def _computations(program: str) -> dict[str, tuple[bool, list[str]]]:
    """Return the computations of a program: name -> (whether it is the entry, its lines)."""
    computations: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{\s*$", line)
        if head:
            lines = []
            computations[head.group(2)] = (bool(head.group(1)), lines)
        else:
            lines.append(line)
    return computations


def _trip_counts(
    computations: dict[str, tuple[bool, list[str]]], name: str | None, trips: float = 1.0
) -> dict[str, float]:
    """Return how many times a computation and those that it calls run, if it runs `trips` times."""
    if name not in computations:
        return {}
    counts = {name: trips}
    for line in computations[name][1]:
        known = re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', line)
        for role, callee in re.findall(r"(body|condition|calls|to_apply|branch_computations)=\{?%?([\w.-]+)", line):
            iterations = float(known.group(1)) if known and role == "body" else 1.0
            for inner, count in _trip_counts(computations, callee, trips * iterations).items():
                counts[inner] = counts.get(inner, 0.0) + count
    return counts


def _collective(line: str) -> tuple[str | None, float]:
    match = re.match(rf"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
    if not match:
        return None, 0.0
    shape, kind, starts = match.groups()
    if starts and kind != "all-reduce":  # the shape is a tuple (operands, results, ...)
        shape = _elements(shape)[1]
    return kind, sum(_size(*array) for array in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape))


def _elements(shape: str) -> list[str]:
    """Split the shape of a tuple into its elements, ignoring commas in inner brackets."""
    elements, depth, begin = [], 0, 1
    for i, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            elements.append(shape[begin:i])
            begin = i + 1
    return elements


def _size(dtype: str, shape: str) -> float:
    return BYTES.get(dtype, 0) * math.prod(int(size) for size in shape.split(",") if size)
