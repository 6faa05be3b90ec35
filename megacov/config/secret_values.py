"""Recognizes secrets by the words of their name or by the look of their value, so that no file holds them."""

from __future__ import annotations

import re

# Parts of a name: HF_TOKEN, hf-token and hfToken are all "HF" and "TOKEN". KEYBOARD and PATH are words of their own.
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = frozenset(
    (
        *("AUTH", "BEARER", "COOKIE", "CRED", "CREDENTIAL", "CREDENTIALS", "CREDS", "JWT", "KEY", "KEYS", "PASS"),
        *("PASSPHRASE", "PASSWD", "PASSWORD", "PAT", "PW", "SECRET", "SECRETS", "TOKEN", "TOKENS"),
    )
)
_SECRET_ENDINGS = ("ACCESSKEY", "APIKEY", "PASSPHRASE", "PASSWD", "PASSWORD", "PRIVATEKEY", "SECRET", "TOKEN")
# Such a variable says where a secret is.
_PLACES = frozenset(("DIR", "FILE", "MAP", "PATH", "SOCK"))
# Counts and switches, as in MAX_TOKENS.
_COUNTED = frozenset(("PASS", "TOKEN", "TOKENS"))
_PLAIN = re.compile(r"(?i)\d*|true|false|yes|no|on|off")

_USER_IN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/\s?#@]+)@")
_SHORTEST_TOKEN = 16  # a URL may name a user, such as git
_IN_QUERY = re.compile(r"[?&;]([A-Za-z0-9_.-]+)=[^&;#\s]+")
_KNOWN = re.compile(
    r"(?<![A-Za-z0-9_/.-])((hf_|gh[pousr]_)[A-Za-z0-9]{16,}(?![A-Za-z0-9_-])|(github_pat_|glpat-)[A-Za-z0-9_-]{16,}"
    # Names such as sk-learn-baseline-1 have no capitals and digits mixed.
    r"|(sk-|xox[abprs]-)(?=[A-Za-z0-9_-]*[0-9])(?=[A-Za-z0-9_-]*[A-Z])[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{16})"
    r"|(?i:bearer) [A-Za-z0-9._~+/-]{8,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def is_secret(name: str, value: str) -> bool:
    """Whether a variable or an option looks like a secret, by its name or by its value."""
    return is_secret_value(value) or (
        _has_secret_name(name) and not (_PLAIN.fullmatch(value) and _secret_words(name) <= _COUNTED)
    )


def is_secret_value(value: str) -> bool:
    """Whether a text looks like a secret: a URL with a password, or a token in one of the known forms."""
    users = _USER_IN_URL.findall(value)
    if any(user.partition(":")[2] or len(user) >= _SHORTEST_TOKEN for user in users):
        return True
    return any(_has_secret_name(name) for name in _IN_QUERY.findall(value)) or _KNOWN.search(value) is not None


def _has_secret_name(name: str) -> bool:
    return bool(_secret_words(name)) and _words(name)[-1] not in _PLACES


def _secret_words(name: str) -> set[str]:
    return {word for word in _words(name) if word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS)}


def _words(name: str) -> list[str]:
    return [word.upper() for word in _PART.findall(name)]
