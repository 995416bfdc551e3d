"""The words of a command line that name experts -> the parts of them.

`code:net.py:Net(depth=4):weights.pth` names a network by the code that builds it: a Python file, a class or function
in it, its arguments as they would be written in Python, and the weights file.
"""

from __future__ import annotations

import ast
import re

from experts.spec import CodeSource
from imaging.refusal import Refusal

CODE_PREFIX = "code:"
_CODE = re.compile(r"code:(?P<file>.+?\.py):(?P<name>[A-Za-z_]\w*)(?P<call>\(.*\))?:(?P<weights>[^:].*)", re.DOTALL)
_EXAMPLE = "write code:net.py:Net:weights.pth, or code:net.py:Net(depth=4):weights.pth"


def split_words(text: str) -> list[str]:
    """`a,b,code:n.py:Net(depths=[6,6]):w.pth` -> three words: a comma inside brackets does not separate."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            words.append("")
        else:
            words[-1] += letter
    return [word for word in words if word]


def parse_code_word(word: str) -> tuple[CodeSource, str]:
    """`code:FILE:NAME(ARGUMENTS):WEIGHTS` -> the code and the weights file."""
    match = _CODE.fullmatch(word)
    if match is None:
        raise Refusal("does not name a Python file, a class and a weights file", where=word, cure=_EXAMPLE)
    call = match["call"] or "()"
    try:
        expression = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(expression, ast.Call) or expression.args:
            raise ValueError
        arguments = {str(one.arg): ast.literal_eval(one.value) for one in expression.keywords if one.arg}
        if len(arguments) != len(expression.keywords):
            raise ValueError
    except (SyntaxError, ValueError):
        raise Refusal(f"its arguments {call} are not name=value with plain values", where=word, cure=_EXAMPLE) from None
    return CodeSource(file=match["file"], name=match["name"], arguments=arguments), match["weights"]
