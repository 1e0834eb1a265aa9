"""Which addresses are public: every entry of the registries, its edges, and its disguises."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.stages.download.guard import is_private_literal, is_public

# (network, one address that lies just outside of it and is public, if there is one)
REFUSED = [
    ("0.0.0.0/8", "1.0.0.0"),
    ("10.0.0.0/8", "11.0.0.0"),
    ("100.64.0.0/10", "100.128.0.0"),
    ("127.0.0.0/8", "128.0.0.1"),
    ("169.254.0.0/16", "169.255.0.0"),
    ("172.16.0.0/12", "172.32.0.0"),
    ("192.0.0.0/24", "192.0.1.0"),
    ("192.0.2.0/24", "192.0.3.0"),
    ("192.88.99.0/24", "192.88.100.0"),
    ("192.168.0.0/16", "192.169.0.0"),
    ("198.18.0.0/15", "198.20.0.0"),
    ("198.51.100.0/24", "198.51.101.0"),
    ("203.0.113.0/24", "203.0.114.0"),
    ("224.0.0.0/4", "223.255.255.255"),
    ("240.0.0.0/4", None),
    ("161.26.0.0/16", "161.27.0.0"),
    ("166.8.0.0/14", "166.12.0.0"),
    ("168.63.129.16/32", "168.63.129.17"),
    ("::/128", None),
    ("::1/128", None),
    ("::/96", None),  # IPv4-compatible, ::8.8.8.8 too
    ("::ffff:0:0:0/96", None),  # translated, ::ffff:0:8.8.8.8 too
    ("64:ff9b:1::/48", None),
    ("100::/64", None),
    ("2001::/23", "2001:200::"),
    ("2001:db8::/32", "2001:db9::"),
    ("3fff::/20", "3fff:1000::"),
    ("5f00::/16", None),
    ("fc00::/7", None),
    ("fe80::/10", None),
    ("fec0::/10", None),
    ("ff00::/8", None),
]
METADATA = [
    *("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    *("fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe", "::ffff:169.254.169.254"),
    *("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "::a9fe:a9fe", "::ffff:0:a9fe:a9fe"),
    *("64:ff9b::a83f:8110", "::ffff:168.63.129.16", "2002:a83f:8110::1"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8"]
PUBLIC += ["64:ff9b::808:808", "2002:808:808::1", "192.175.48.1"]


@pytest.mark.parametrize(("network", "outside"), REFUSED)
def test_a_registered_network_is_refused_to_its_edges(network: str, outside: str | None) -> None:
    net = ipaddress.ip_network(network)
    middle = net[net.num_addresses // 2]
    for address in (net[0], middle, net[-1]):
        assert not is_public(str(address)), address
    assert outside is None or is_public(outside)


@pytest.mark.parametrize("address", [*METADATA, "fe80::1%eth0"])
def test_metadata_services_are_refused_in_every_disguise(address: str) -> None:
    assert not is_public(address)
    assert is_private_literal(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_each_form(ip: ipaddress.IPv4Address) -> None:
    public = is_public(str(ip))
    for form in (
        f"::ffff:{ip}",
        f"64:ff9b::{ip}",
        str(ipaddress.ip_address(0x2002 << 112 | int(ip) << 80)),
    ):
        assert is_public(form) == public, form
    for never in (f"::{ip}", f"::ffff:0:{ip}", f"64:ff9b:1::{ip}"):
        assert not is_public(never), never


@given(st.ip_addresses())
def test_what_python_calls_private_is_never_public(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    # The other way round it may be: 2001::/23 has a few entries that are global, and unused here.
    if is_public(str(ip)) and getattr(ip, "ipv4_mapped", None) is None:
        assert not ip.is_multicast
        assert not ip.is_loopback
        assert not ip.is_link_local


@pytest.mark.parametrize("name", ["a.example", "localhost", "1.2.3", "", "2130706433"])
def test_a_name_is_no_literal(name: str) -> None:
    assert not is_private_literal(name)
