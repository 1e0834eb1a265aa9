"""Which addresses of the internet a stranger's list may reach.

The lists are IANA's registries of special-purpose addresses (https://www.iana.org/assignments/
iana-ipv4-special-registry and iana-ipv6-special-registry, state of 2025-10), every entry that is
not globally reachable; multicast; and what clouds answer from public-looking addresses. They
stand here and not in `ipaddress`, whose own lists change with Python's version.
"""

import ipaddress
from typing import Final

_V4: Final = {
    "0.0.0.0/8": "this network, RFC 791",
    "10.0.0.0/8": "private use, RFC 1918",
    "100.64.0.0/10": "shared address space, RFC 6598; Alibaba's metadata 100.100.100.200",
    "127.0.0.0/8": "loopback, RFC 1122",
    "169.254.0.0/16": "link local, RFC 3927; clouds' metadata 169.254.169.254 and 169.254.170.2",
    "172.16.0.0/12": "private use, RFC 1918",
    "192.0.0.0/24": "IETF protocol assignments, RFC 6890; Oracle's metadata 192.0.0.192",
    "192.0.2.0/24": "documentation, RFC 5737",
    "192.88.99.0/24": "6to4 relays, deprecated, RFC 7526",
    "192.168.0.0/16": "private use, RFC 1918",
    "198.18.0.0/15": "benchmarking, RFC 2544",
    "198.51.100.0/24": "documentation, RFC 5737",
    "203.0.113.0/24": "documentation, RFC 5737",
    "224.0.0.0/4": "multicast, RFC 5771",
    "240.0.0.0/4": "reserved and broadcast, RFC 1112, RFC 919",
    # Public-looking, and answered by the cloud that one runs in:
    "161.26.0.0/16": "IBM Cloud's service endpoints (cloud.ibm.com/docs/vpc)",
    "166.8.0.0/14": "IBM Cloud's service endpoints (cloud.ibm.com/docs/vpc)",
    "168.63.129.16/32": "Azure's WireServer (learn.microsoft.com: What is 168.63.129.16)",
}
# Global unicast is 2000::/3 alone (RFC 4291; iana.org/assignments/ipv6-address-space), so that
# loopback, unique local, link and site local (fec0::/10), IPv4-compatible (::a.b.c.d), translated
# (::ffff:0:a.b.c.d), local-use NAT64 (64:ff9b:1::/48), discard-only and AWS's fd00:ec2::254 need
# no entry. Within it:
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_V6: Final = {
    "2001::/23": "IETF protocol assignments, RFC 2928: Teredo, benchmarking, ORCHID",
    "2001:db8::/32": "documentation, RFC 3849",
    "3fff::/20": "documentation, RFC 9637",
}
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_REFUSED_V4: Final = tuple(map(ipaddress.IPv4Network, _V4))
_REFUSED_V6: Final = tuple(map(ipaddress.IPv6Network, _V6))


def is_public(address: str) -> bool:
    """Say whether an IP address is one that the public internet routes to.

    IPv4 addresses inside IPv6 ones (mapped, 6to4, NAT64) are judged by the IPv4 address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _REFUSED_V4)
    inner = _inner(ip)
    if inner is not None:
        return is_public(str(inner))
    return ip in _GLOBAL_UNICAST and not any(ip in network for network in _REFUSED_V6)


def is_private_literal(host: str) -> bool:
    """Say whether `host` is an IP address itself, and not a public one; a name is neither."""
    try:
        return not is_public(host)
    except ValueError:
        return False


def _inner(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to `ip` end at, where it is one that is translated."""
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour
