"""Structure-aware mutations: most results still pass the outer syntax, so that the readers behind it are reached."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

STRINGS = [
    "",
    " ",
    "..",
    "../../x",
    "/etc/passwd",
    "a\0b",
    "\x1b[31mred",
    "\u202egnp",
    "\ud800",
    "\n- injected",
    "\r",
    "é" * 3,
    "\U0001f4a9",
    "x" * 1500,
    "." * 40,
    "~nobody-of-that-name/x",
    "org/name@rev:sub",
    "a+b+c",
    "(a?){40}",
    "(.*)*x",
    "[",
    "layers." + "9" * 60,
    "layers.0.q_proj",
    "nan",
    ".inf",
    "1e999",
    "<<",
    "*",
    "&a",
    "!!python/object/apply:os.system",
    "default",
    "__metadata__",
    "hf_" + "A" * 34,
    "true",
    "null",
    "mean",
    "first",
    "auto",
]
NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2,
    8,
    16,
    255,
    2**31,
    2**63 - 1,
    2**63,
    2**64,
    10**400,
    -(10**400),
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    True,
    False,
    None,
]


def some_value(draw: Random, words: list[str]) -> Any:
    """A scalar or small container that a reader may not expect."""
    kind = draw.randrange(8)
    if kind < 3:
        return draw.choice(NUMBERS)
    if kind < 5:
        return draw.choice(STRINGS)
    if kind < 6 and words:
        return draw.choice(words)
    if kind < 7:
        return draw.choice(([], {}, [[]], [1], ["a", "a"], {"a": 1}, {"": None}, [None], [{}], {"a": {"b": {"c": []}}}))
    return deep(draw)


def deep(draw: Random) -> Any:
    """Lists or objects nested far deeper than any real document."""
    value: Any = 1
    for _ in range(draw.choice((5, 45, 150))):
        value = [value] if draw.random() < 0.5 else {"a": value}
    return value


def mutate_tree(draw: Random, tree: Any, words: list[str], other: Any = None) -> Any:
    """One change somewhere in a JSON tree: a value replaced, a key renamed, removed, added, or a branch of another tree."""
    spots = list(_spots(tree))
    if not spots:
        return some_value(draw, words)
    holder, key = draw.choice(spots)
    change = draw.randrange(8)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[_new_key(draw, words, str(key))] = holder.pop(key)
    elif change == 2 and isinstance(holder, dict):
        holder[_new_key(draw, words, str(key))] = some_value(draw, words)
    elif change == 3 and isinstance(holder, list):
        holder.insert(draw.randrange(len(holder) + 1), some_value(draw, words))
    elif change == 4 and other is not None and (branches := list(_spots(other))):
        theirs, their_key = draw.choice(branches)
        holder[key if isinstance(holder, list) else their_key if isinstance(their_key, str) else key] = theirs[their_key]
    elif change == 5 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = nudge(draw, holder[key])
    elif change == 6:
        holder[key] = [holder[key]]
    else:
        holder[key] = some_value(draw, words)
    return tree


def nudge(draw: Random, number: Any) -> Any:
    """A neighbour of a number, or the number as a relative of another type."""
    return draw.choice((number + 1, number - 1, -number, number * 2, str(number), [number], bool(number)))


def _new_key(draw: Random, words: list[str], old: str) -> str:
    pick = draw.randrange(5)
    if pick < 2 and words:
        return draw.choice(words)
    if pick == 2:
        return draw.choice(STRINGS)
    if pick == 3 and old:
        cut = draw.randrange(len(old))
        return old[:cut] + draw.choice(("", ".", "x", "_", "0", "\x07")) + old[cut + draw.randrange(2) :]
    return f"{old}.{draw.choice(words) if words else 'x'}"


def _spots(tree: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree, not deeper than a few levels."""
    if depth > 6:
        return []
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    found: list[tuple[Any, Any]] = [(tree, key) for key in keys]
    for key in keys:
        if isinstance(tree[key], dict | list):
            found += _spots(tree[key], depth + 1)
    return found


def mutate_bytes(draw: Random, data: bytes) -> bytes:
    """A few blind changes: bits, bytes, pieces doubled, removed or moved."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not data:
            return draw.randbytes(draw.randrange(12))
        at = draw.randrange(len(data))
        change = draw.randrange(6)
        if change == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif change == 1:
            data[at] = draw.randrange(256)
        elif change == 2:
            del data[at : at + draw.choice((1, 2, 8, 64))]
        elif change == 3:
            piece = data[at : at + draw.choice((1, 4, 16, 64))]
            where = draw.randrange(len(data) + 1)
            data[where:where] = piece
        elif change == 4:
            data[at:at] = draw.choice(_TOKENS)
        else:
            data = data[:at]
    return bytes(data)


_TOKENS = [
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"\\ud800", b"\\u0000", b"1e999", b"9" * 30, b"NaN"),
]


def as_json(tree: Any) -> bytes:
    """JSON text, lone surrogates escaped."""
    return json.dumps(tree).encode()


def mutate_json(draw: Random, data: bytes, words: list[str], other: bytes) -> bytes:
    """Changes of a JSON document's tree, sometimes of its bytes."""
    if draw.random() < 0.2:
        return mutate_bytes(draw, data)
    try:
        tree = json.loads(data)
        donor = json.loads(other) if draw.random() < 0.3 else None
    except (ValueError, RecursionError):
        return mutate_bytes(draw, data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not isinstance(tree, dict | list):
            break
        tree = mutate_tree(draw, tree, words, donor)
    try:
        result = as_json(tree)
    except (ValueError, RecursionError):
        return data
    return mutate_bytes(draw, result) if draw.random() < 0.05 else result


def mutate_safetensors(draw: Random, data: bytes, words: list[str], other: bytes) -> bytes:
    """Changes of the header's tree under a length that mostly fits, over data that mostly fits."""
    if draw.random() < 0.15 or len(data) < 10:
        return mutate_bytes(draw, data)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    (donor_length,) = struct.unpack("<Q", other[:8].ljust(8, b"\0"))
    header = mutate_json(draw, header, words, other[8 : 8 + donor_length])
    if draw.random() < 0.5:
        header, body = _lay_out(draw, header, body)
    length = len(header) if draw.random() < 0.95 else draw.choice((0, 1, len(header) + 1, 2**63, 100_000_001, 8))
    return struct.pack("<Q", length) + header + body


def _lay_out(draw: Random, header: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Offsets that follow each other, so that what is left wrong is something else."""
    try:
        tree = json.loads(header)
    except (ValueError, RecursionError):
        return header, body
    position = 0
    for name, entry in tree.items() if isinstance(tree, dict) else ():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        offsets = entry.get("data_offsets")
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets):
            size = max(0, min(offsets[1] - offsets[0], 512))
            entry["data_offsets"] = [position, position + size]
            position += size
    return as_json(tree), b"\0" * (position if draw.random() < 0.9 else position + 1)


_LONGEST_RECIPE = 400
"""Bytes; what YAML can do wrong it does in fewer, and the parser is slow."""


def mutate_yaml(draw: Random, data: bytes, words: list[str], other: bytes) -> bytes:
    """Changes of a recipe's lines, words and values."""
    if draw.random() < 0.15:
        return mutate_bytes(draw, data)
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not lines:
            lines = [""]
        at = draw.randrange(len(lines))
        _change_line(draw, lines, at, words, other)
    text = "\n".join(lines)
    return text.encode("utf-8", "replace")[:_LONGEST_RECIPE]


def _change_line(draw: Random, lines: list[str], at: int, words: list[str], other: bytes) -> None:
    line = lines[at]
    indent = line[: len(line) - len(line.lstrip())]
    change = draw.randrange(10)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(draw.randrange(len(lines) + 1), line)
    elif change == 2:
        lines[at] = "  " + line if draw.random() < 0.5 else line.removeprefix("  ")
    elif change == 3:
        theirs = other.decode("utf-8", "replace").split("\n")
        lines.insert(at, draw.choice(theirs))
    elif change == 4:
        lines.insert(at, f"{indent}{draw.choice(words)}: {_yaml_value(draw, words)}")
    elif change == 5 and ":" in line:
        lines[at] = f"{line.partition(':')[0]}: {_yaml_value(draw, words)}"
    elif change == 6 and ":" in line:
        lines[at] = f"{indent}{draw.choice(words)}:{line.partition(':')[2]}"
    elif change == 7:
        lines[at] = f"{indent}- {_yaml_value(draw, words)}"
    else:
        parts = line.split(" ")
        parts[draw.randrange(len(parts))] = draw.choice((draw.choice(words), _yaml_value(draw, words)))
        lines[at] = " ".join(parts)


def _yaml_value(draw: Random, words: list[str]) -> str:
    kind = draw.randrange(6)
    if kind == 0:
        return draw.choice(words)
    if kind == 1:
        return draw.choice(_YAML_MARKS)
    if kind == 2:
        return draw.choice(_YAML_SCALARS)
    try:
        return as_json(some_value(draw, words)).decode().replace("Infinity", ".inf").replace("NaN", ".nan")
    except ValueError:
        return "1"


_YAML_MARKS = [
    *("&a 1", "*a", "&a [*a]", "!!str x", "|", ">", '"', "'", "? a", "- b", "<<: *a", "{", "]", "~", "# c", "---", "%YAML 1.2"),
    *("<x>", "<y>-<x>", "<z>", "parent.yaml", "child.yaml", "recipe.yaml", "nowhere.yaml"),
]
_YAML_SCALARS = ["0x1F", "0o17", "1e-5", ".inf", ".nan", "1_000", "no", "1" * 40, "-0", "1.", ".5", "1e999"]
