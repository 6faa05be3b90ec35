"""Servers that the trainer may use: those of a private network, and others with TLS."""

from __future__ import annotations

import pytest

from megacov.config.addresses import check_addresses

LET_IN = (
    "http://127.0.0.1:30000",
    "http://10.0.0.5:30000",
    "http://192.168.7.8",
    "http://[::1]:30000",
    "http://[fd00::5]:30000",
    "http://[::ffff:10.0.0.5]:30000",
    "http://node-7:30000",
    "https://8.8.8.8:30000",
    "https://rollouts.example.com",
)


@pytest.mark.parametrize("address", LET_IN)
def test_private_addresses_names_and_tls_are_let_in(address):
    assert check_addresses([address, "http://10.9.9.9:1/"]) == (address, "http://10.9.9.9:1")


@pytest.mark.parametrize(
    "address",
    ["http://8.8.8.8:30000", "http://0.0.0.0:30000", "http://[2001:4860::1]:1", "http://[::ffff:8.8.8.8]:1"],
)
def test_public_addresses_are_refused_without_tls(address):
    with pytest.raises(
        ValueError, match=r"leads to the public address .* without TLS.* use .*private network, or http"
    ):
        check_addresses([address])


@pytest.mark.parametrize(
    "address",
    ["10.0.0.5:30000", "ftp://10.0.0.5", "http://", "http://:1", "http://10.0.0.5:x", "http://[::1", "http://a:1/v1",
     "http://key@10.0.0.5:1", "http://10.0.0.5:1?a=b", "", "http://10.0.0.5:1\n", "http://10.0. 0.5:1"],
)  # fmt: skip
def test_what_is_no_address_of_a_server_is_refused(address):
    with pytest.raises(ValueError, match="is not a URL: write it as http://HOST:PORT"):
        check_addresses([address])


def test_a_server_is_named_once():
    with pytest.raises(ValueError, match="http://10.0.0.5:1/ occurs twice"):
        check_addresses(["http://10.0.0.5:1", "http://10.0.0.5:1/"])
