"""Addresses of rollout servers: where a server may listen, and which URLs the trainer may use."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from megacov.config.messages import show


def is_ip_address(host: str) -> bool:
    """Whether the host of a URL is an address and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_private(host: str) -> bool:
    """Whether an IP address is of this machine or a private network. 0.0.0.0, which is every address, is not."""
    address = ip_address(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_private and not address.is_unspecified


def is_loopback(host: str) -> bool:
    """Whether a host, an address or the name localhost, is this machine and cannot be reached from any other."""
    return ip_address(host).is_loopback if is_ip_address(host) else host == "localhost"


def refuse_public(host: str, *, url: str) -> None:
    """Refuse an address if third parties could read keys and change samples on the way to it.

    Args:
        host: an IP address.
        url: URL that leads to the address.

    Raises:
        ValueError: the address is public, and the URL has no TLS.
    """
    if not url.startswith("https://") and not is_private(host):
        raise ValueError(
            f"{url} leads to the public address {host} without TLS, where others can read and change what is sent: "
            "use the server's address in a private network, or https."
        )


def check_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Check URLs of servers. Host names are resolved later, when the trainer connects.

    Args:
        addresses: URLs such as http://10.0.0.5:30000.

    Returns:
        The URLs without a slash at the end.

    Raises:
        ValueError: an address is not such a URL, is public without TLS, or occurs twice.
    """
    checked: dict[str, None] = {}  # in order, and quick to look up
    for address in addresses:
        host = _host_of(address)
        if is_ip_address(host):
            refuse_public(host, url=address)
        if address.rstrip("/") in checked:
            raise ValueError(f"{show(address)[1:-1]} occurs twice: name each server once.")
        checked[address.rstrip("/")] = None
    return tuple(checked)


def _host_of(address: str) -> str:
    wrong = ValueError(f"{show(address)} is not a URL: write it as http://HOST:PORT.")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:  # wrong brackets, or a port that is not a number
        raise wrong from None
    # urlsplit passes over control characters, at which aiohttp would raise later.
    is_clean = address.isprintable() and " " not in address
    if not is_clean or not address.startswith(("http://", "https://")) or not host or "@" in parts.netloc:
        raise wrong
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise wrong
    return host
