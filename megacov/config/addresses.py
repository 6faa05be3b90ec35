"""Addresses of rollout servers: where one may listen, and which URLs are talked to."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit


def is_ip_address(host: str) -> bool:
    """Tell an address from a name.

    Args:
        host: of a URL.

    Returns:
        False for a name.
    """
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_private(host: str) -> bool:
    """Whether an address is one of this machine, or of a private network.

    Args:
        host: an IP address.

    Returns:
        False for 0.0.0.0 as well, which is every address of a machine.
    """
    address = ip_address(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_private and not address.is_unspecified


def is_loopback(host: str) -> bool:
    """Whether a host is this machine under an address that no other machine reaches.

    Args:
        host: of a URL.

    Returns:
        False for names but localhost.
    """
    return ip_address(host).is_loopback if is_ip_address(host) else host == "localhost"


def refuse_public(host: str, *, url: str) -> None:
    """Refuse an address where whoever is on the way could read keys and change samples.

    Args:
        host: an IP address.
        url: which leads there.

    Raises:
        ValueError: it is public, and the URL has no TLS.
    """
    if not url.startswith("https://") and not is_private(host):
        raise ValueError(
            f"{url} leads to the public address {host} without TLS, where others can read and change what is sent: "
            "use the server's address in a private network, or https."
        )


def check_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Check URLs of servers. Host names are looked up only when they are connected to.

    Args:
        addresses: such as http://10.0.0.5:30000.

    Returns:
        The same without a slash at the end.

    Raises:
        ValueError: one is no such URL, is public without TLS, or is there twice.
    """
    checked: list[str] = []
    for address in addresses:
        host = _host_of(address)
        if is_ip_address(host):
            refuse_public(host, url=address)
        if address.rstrip("/") in checked:
            raise ValueError(f"{address} is there twice: name each server once.")
        checked.append(address.rstrip("/"))
    return tuple(checked)


def _host_of(address: str) -> str:
    wrong = ValueError(f"{address!r} is no URL: write it as http://HOST:PORT.")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:  # brackets, or a port that is no number
        raise wrong from None
    if not address.startswith(("http://", "https://")) or not host or "@" in parts.netloc:
        raise wrong
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise wrong
    return host
