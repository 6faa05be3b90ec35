"""One spelling for the many in which LaTeX and plain text write the same mathematics."""

from __future__ import annotations

import re

from megacov.rewards.verifiers.mathematics.unicode_signs import SIGNS

_SPACE = re.compile(r"(?<!\\)\\[;: ]|\\(?:q?quad|enspace|thinspace|medspace|thickspace)(?![a-zA-Z])|~|\s+")
_DROPPED = re.compile(
    r"\\(?:text)?color\s*\{[a-zA-Z!\d]*\}|\\(?:bf|rm|it|underline|displaystyle|textstyle|scriptstyle|limits|mathstrut|nolimits|boldsymbol|bm|mathbf|mathit|mathsf)(?![a-zA-Z])"
    r"|\\phantom\s*(?:\{[^{}]*\}|.)|\\(?:left|right|middle)\s*\.|\\[mM]?(?:left|right|middle)(?![a-zA-Z])"
    r"|\\[bB]igg?[lrm]?(?![a-zA-Z])|\\[()\[\]](?=\s|$)|(?<!\\)\$"
)
_NAMES = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "geq": "ge", "leqslant": "le", "geqslant": "ge",
    "neq": "ne", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "lt": "<", "gt": ">", "degree": "^\\circ",
    "textdegree": "^\\circ", "varnothing": "emptyset", "dbinom": "binom", "tbinom": "binom", "infin": "infty",
    "bigcup": "cup", "bigcap": "cap",
    "lvert": "|", "rvert": "|", "vert": "|", "land": "text{ and }", "lor": "text{ or }", "ast": "cdot ", "div": "/",
    "dots": "ldots", "cdots": "ldots", "simeq": "approx", "mathrm": "text", "mathup": "text", "mbox": "text",
    "textbf": "text", "textrm": "text", "textit": "text", "textnormal": "text", "textsf": "text", "hbox": "text",
    "textup": "text", "arcsin": "arcsin", "operatorname": "text", "sim": "approx", "dollar": "$",
}  # fmt: skip
_PLAIN = {"[", "]", "<", ">", "|", "/", "^\\circ"}  # that stand without a backslash
_COMMAND = re.compile(r"\\(" + "|".join(sorted(_NAMES, key=len, reverse=True)) + r")(?![a-zA-Z])(?:\s+(?=[\d\\{(\[]))?")
_ROOT = re.compile(r"\u221a\s*(?:(\d+(?:\.\d+)?|[a-zA-Z])|\(([^()]*)\)|(?=\{))")
_FONT = re.compile(r"\{\\(?:bf|rm|it|sf|tt)\s+([^{}]*)\}")
_FUNCTIONS = re.compile(
    r"\\(?:operatorname|text|mathrm)\s*\{\s*(sin|cos|tan|cot|csc|log|ln|arcsin|arccos|arctan|gcd|lcm|exp)\s*\}"
    r"|\\operatorname\s*\{\s*(min|max|sec)\s*\}"
)
_PLAIN_NAMES = re.compile(r"(?<![\\a-zA-Z])(sqrt|pi|infinity|infty|inf|theta)(?![a-zA-Z])")
_PLAIN_SQRT = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_THOUSANDS = re.compile(r"(?<=\d)(?:,\\!\s*|\{,\}\s*|\\,)(?=\d{3}(?!\d))|(?<=\d)\{(?:\\,|,\\!)\}(?=\d{3}(?!\d))")
_WITH_ARGUMENTS = re.compile(r"\\(?:frac|binom|sqrt)(?![a-zA-Z])")
_ARGUMENT = re.compile(r"\s*(?:(\\[a-zA-Z]+|[^\s{}\\])|(?=\{))")
_FRACTION_AS_POWER = re.compile(r"\^\s*(\\frac\{[^{}]*\}\{[^{}]*\})")
_POWER = re.compile(r"\^\s*(-?\d{2,}|-\d)(?![\d.])|\*\*\s*(-?\d+)")
_CIRCLE = re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])\s*|\\degrees?(?![a-zA-Z])")
_PERCENT = re.compile(
    r"\\?%|\\text\s*\{\s*(?:percent|percentage|pct|\\?%)\s*\}|(?<=\d)\s*\bper\s?cent\b", re.IGNORECASE
)
_AND = re.compile(
    r"\s*,?\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*|\\text\s*\{\s*,\s*\}|\s*,?(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])\s*"
)
_LETTER = re.compile(r"\\(?:mathrm|text)\s*\{\s*([ied])\s*\}")
_PLAIN_UNION = re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])")
_END = re.compile(r"(?:\s|[.,;:]|\\[,;!]|\\\\|\\text\s*\{\s*\.?\s*\}|\\$)+$")

_BLANKS = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # "1 2" is not 12
_ONE_SIGN = re.compile(r"\{(\w)\}")

DEGREE, PERCENT = "\u00b0", "%"
"""One sign each, which no LaTeX command contains."""


def cleaned(latex: str) -> str:
    """Rewrite an answer in one spelling.

    Braces around the arguments of fractions and roots, one name for each command, no spacing, sizes, fonts, dollar
    signs around mathematics, thousands separators or full stop; "and" is a comma, a degree sign is `DEGREE`.

    Args:
        latex: an answer as a person or a model wrote it.

    Returns:
        The same mathematics. Numbers and order are kept.
    """
    text = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}" if found[1] or found[2] else r"\sqrt", latex)
    text = _FONT.sub(r"\\text{\1}", text.translate(SIGNS))
    text = _THOUSANDS.sub("", text)
    text = text.replace("\\!", "").replace("\\,", " ").replace("\\$", "\\dollar ").replace("\\&", "&")
    text = _SPACE.sub(" ", _DROPPED.sub("", text))
    text = _PLAIN_UNION.sub(r"\\cup ", _LETTER.sub(r"\1", text))
    text = _FUNCTIONS.sub(lambda found: f"\\{found[1] or found[2]} ", text)
    text = _COMMAND.sub(_renamed, text)
    text = _PERCENT.sub(PERCENT, _CIRCLE.sub(DEGREE, text))
    text = _AND.sub(", ", text)
    text = _PLAIN_NAMES.sub(
        lambda found: {"infinity": r"\infty", "inf": r"\infty"}.get(found[1], "\\" + found[1]), text
    )
    text = _PLAIN_SQRT.sub(r"\\sqrt{\1}", text)
    text = _FRACTION_AS_POWER.sub(r"^{\1}", _with_braces(text))
    text = _POWER.sub(lambda found: "^{" + (found[1] or found[2]) + "}", text)
    return _END.sub("", text.strip()).strip()


def _renamed(found: re.Match[str]) -> str:
    name = _NAMES[found[1]]
    return name if name in _PLAIN else f"\\{name}" + ("" if name[-1] in "{} " else " ")


def _with_braces(text: str) -> str:
    r"""Put braces around the arguments of fractions and roots: \frac 12 and \frac{1}2 are \frac{1}{2}."""
    pieces, begin = [], 0
    for command in _WITH_ARGUMENTS.finditer(text):
        if command.start() < begin:
            continue  # inside of an argument, which was rewritten already
        position, arguments = command.end(), []
        if command[0] == "\\sqrt" and text[position : position + 1] == "[":
            closing = text.find("]", position)
            if closing < 0:
                continue
            position = closing + 1
        head = position
        for _ in range(1 if command[0] == "\\sqrt" else 2):
            argument = _ARGUMENT.match(text, position)
            if argument is None:
                break
            end = argument.end() if argument[1] else _end_of_group(text, argument.end())
            arguments.append(argument[1] or _with_braces(text[argument.end() + 1 : end - 1]))
            position = end
        else:
            pieces += [text[begin:head], *(f"{{{each}}}" for each in arguments)]
            begin = position
    return "".join([*pieces, text[begin:]])


def _end_of_group(text: str, begin: int) -> int:
    depth = 0
    for position in range(begin, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return position + 1
    return len(text) + 1


def key(text: str) -> str:
    """What is left of a cleaned answer when spellings are compared: no blanks, no braces around one sign."""
    return _ONE_SIGN.sub(r"\1", _BLANKS.sub("", text))
