"""What ONNX Runtime says, in one line."""

from __future__ import annotations

import re

from onnxruntime.capi import onnxruntime_pybind11_state

_LONGEST = 300  # characters; the operative part comes first
_PARENTHESES = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"  # nested up to three deep, as in C++ signatures
_FUNCTION = rf"[^()]*?::[^()]*(?:{_PARENTHESES})+(?:::<lambda{_PARENTHESES}>)?(?: const)?(?: \[with [^\]]*\])?"
_PREFIXES = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"Exception during (?:loading|initialization): "),
    re.compile(r"This is an invalid model\. "),
    re.compile(r"Load model from .*? failed:\s*"),
    re.compile(rf"(?:/\S+/)?\w+\.(?:cc|h|cpp|hpp|cu|cuh):\d+ (?:{_FUNCTION} )?"),  # a place in its source
    re.compile(r"\S+(?: [<>=!]+ \S+)? was false\. "),
)
_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: ")
_ADVICE = " Please fix either the inputs/outputs or the model."

# Its own exceptions have no base in common; lack of memory and values that cannot be converted come as RuntimeError,
# feeds that do not fit as ValueError or TypeError.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(
        item
        for item in vars(onnxruntime_pybind11_state).values()
        if isinstance(item, type) and issubclass(item, Exception)
    ),
    RuntimeError,
    ValueError,
    TypeError,
)


def one_line(error: Exception) -> str:
    """Return the operative part of an error of ONNX Runtime: no codes, no places in its source, one line."""
    text = " ".join(str(error).split())
    where = ""
    before = None
    while text != before:  # the parts nest: a code, a node, a place, a code again
        before = text
        for prefix in _PREFIXES:
            found = prefix.match(text)
            text = text[found.end() :] if found else text
        node = _NODE.match(text)
        if node:
            where = f"node '{node[2]}' ({node[1]}): "
            text = text[node.end() :]
    text = where + text.replace(_ADVICE, "").strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
