"""What a rollout server answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megacov.errors import RolloutError
from megacov.json_text import JsonError, parse_json

_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    path: endpoint that was asked.
    status: HTTP status.
    content: body.
    """

    path: str
    status: int
    content: bytes

    @property
    def is_success(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status < 300

    @property
    def is_not_found(self) -> bool:
        """Whether the server has no such endpoint."""
        return self.status == _NOT_FOUND


def parsed(reply: Reply, server: str) -> dict[str, Any]:
    """Read the JSON object in a reply.

    Args:
        reply: a successful one.
        server: address, for the error message.

    Returns:
        The object.

    Raises:
        RolloutError: the reply holds no JSON object.
    """
    try:
        content = parse_json(reply.content)
    except JsonError as error:
        raise RolloutError(f"{server} sent a reply to {reply.path} that is no JSON.") from error
    if not isinstance(content, dict):
        raise RolloutError(f"{server} sent a reply to {reply.path} that is no JSON object.")
    return content
