"""Tags of where in a batch covariance, entropy and selection are: by accuracy of the prompt, by position."""

from __future__ import annotations

from itertools import pairwise

from megacov.monitor.tag import Tag

ACCURACY_LIMITS = (0.0, 0.25, 0.5, 0.75)
"""Highest accuracy of each class but the last two: those are between the last limit and 1, and 1 itself."""

ACCURACY_CLASSES = {
    "000": "groups without a right response",
    "001_025": "groups with more than 0 and at most 25 % right",
    "026_050": "groups with more than 25 and at most 50 % right",
    "051_075": "groups with more than 50 and at most 75 % right",
    "076_099": "groups with more than 75 and less than 100 % right",
    "100": "groups in which all responses are right",
}

POSITION_LIMITS = (16, 64, 256, 1024, 4096, 16384)
"""First position of each class but the first; positions in a response count from 0."""

POSITION_CLASSES = {
    f"{first:05d}": f"positions {first} to {after - 1}" for first, after in pairwise((0, *POSITION_LIMITS))
} | {f"{POSITION_LIMITS[-1]:05d}": f"positions from {POSITION_LIMITS[-1]} on"}


def _tags(section: str, classes: dict[str, str]) -> tuple[Tag, ...]:
    return tuple(
        tag
        for name, meaning in classes.items()
        for tag in (
            Tag(f"{section}/covariance_{name}", f"Mean covariance in {meaning}.", "nats", "tokens"),
            Tag(f"{section}/entropy_{name}", f"Entropy in {meaning}.", "nats", "tokens"),
            Tag(f"{section}/selected_{name}", f"Selected tokens over the kept ones in {meaning}.", "share", "tokens"),
            Tag(f"{section}/tokens_{name}", f"Loss tokens in {meaning}, over all.", "share", "tokens"),
        )
    )


BREAKDOWN_TAGS = (
    *_tags("cov_by_accuracy", ACCURACY_CLASSES),
    *_tags("cov_by_position", POSITION_CLASSES),
    Tag(
        "cov_by_token/table",
        "The tokens of the vocabulary that were selected most, that lost most entropy, that have most of it, and that "
        "have most covariance.",
        "-",
        "none",
        "text",
    ),
)
