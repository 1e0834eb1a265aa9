"""Addresses are read as browsers read them; what no browser reads is refused with a reason."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.inputs import urls
from capfilt.inputs.urls import credentials_of, fault_of, host_of, join, normalise

PLAIN = "http://a.example/"


@pytest.mark.parametrize(
    ("given_", "fetched"),
    [
        ("http://a.example/x.jpg", "http://a.example/x.jpg"),
        ("http://a.example", PLAIN),
        ("HTTP://A.EXAMPLE:80/x", "http://a.example/x"),
        ("https://a.example:443/x", "https://a.example/x"),
        ("http://a.example:/x", "http://a.example/x"),
        ("http://a.example/señora-写真.jpg", f"{PLAIN}se%C3%B1ora-%E5%86%99%E7%9C%9F.jpg"),
        ("http://a.example/?q=übung", f"{PLAIN}?q=%C3%BCbung"),
        ("http://a.example/%E5%86%99%2Fx", f"{PLAIN}%E5%86%99%2Fx"),
        ("http://a.example/100%.jpg", f"{PLAIN}100%.jpg"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://faß.example/x", "http://xn--fa-hia.example/x"),  # not Python's own, older IDNA
        ("http://ａ．example/x", "http://a.example/x"),
        ("  http://a.example/x \u00a0", "http://a.example/x"),
        ("http://a.exa\tmple/ne\nw\r.jpg", f"{PLAIN}new.jpg"),
        ("http:\\\\a.example\\b\\c.jpg", f"{PLAIN}b/c.jpg"),
        ("http:/a.example/x", f"{PLAIN}x"),
        ("http:a.example/x", f"{PLAIN}x"),
        ("//a.example/x", f"{PLAIN}x"),
        ("\\\\a.example\\x", f"{PLAIN}x"),
        ("/\n/a.example/x", f"{PLAIN}x"),
        ("http://a.example/a/../b/./c", f"{PLAIN}b/c"),
        ("http://a.example/x#fragment", f"{PLAIN}x"),
        ("http://a.example/my photo.jpg", f"{PLAIN}my%20photo.jpg"),
        ("http://a.example/a'b\"c<d>", f"{PLAIN}a'b%22c%3Cd%3E"),
        ("http://a.example/?a=1&amp;b=2", f"{PLAIN}?a=1&b=2"),
        ("http://a.example/?a=1&amp;amp;b=2&#038;c&#x26;d", f"{PLAIN}?a=1&b=2&c&d"),
        ("http://a.example/?a=1&copy=2&lt=3", f"{PLAIN}?a=1&copy=2&lt=3"),
        ("http://127.1/x", "http://127.0.0.1/x"),
        ("http://0x7f.0.0.1/x", "http://127.0.0.1/x"),
        ("http://[::0001]/x", "http://[::1]/x"),
        ("http://user:s%20x@a.example/x", "http://user:s%20x@a.example/x"),
        ("http://a_b.example/x", "http://a_b.example/x"),
        ("http://a.example./x", "http://a.example./x"),
        ("http://a.example/\ud800", f"{PLAIN}%EF%BF%BD"),
        ("http://a.example/\ud83d\ude00", f"{PLAIN}%F0%9F%98%80"),
    ],
)
def test_repairs(given_: str, fetched: str) -> None:
    assert normalise(given_) == fetched
    assert normalise(fetched) == fetched
    assert fault_of(given_) is None


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        (None, "no address"),
        (" \n", "no address"),
        ("a.example/x.jpg", "scheme"),  # or a path: nobody can tell
        ("images/x.jpg", "scheme"),
        ("/images/x.jpg", "scheme"),
        ("localhost:8000/x", "scheme"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "'data' is not http"),
        ("javascript:alert(1)", "'javascript'"),
        ("file:///etc/passwd", "'file'"),
        ("ftp://a.example/x", "'ftp'"),
        ("http://", "without a host"),
        ("http://?x", "without a host"),
        ("http://[foo/x", "not an address"),
        ("http://a.example:99999/x", "not an address"),
        ("http://a.example:8o/x", "not an address"),
        ("http://a b.example/x", "not an address"),
        ("http://a%00b.example/x", "not an address"),
        ("http://256.1.1.1/x", "not an address"),
        (f"http://{'a' * 64}.example/x", "too long"),
        (f"http://{'a.' * 130}example/x", "too long"),
        ("http://a..example/x", "empty"),
    ],
)
def test_refusals(given_: str | None, reason: str) -> None:
    assert reason in str(fault_of(given_))
    if given_ is not None:
        with pytest.raises(ValueError, match=r".+"):
            normalise(given_)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("ok.jpg", "http://a.example/dir/ok.jpg"),
        ("/ok.jpg", "http://a.example/ok.jpg"),
        ("//b.example/ok.jpg", "http://b.example/ok.jpg"),
        ("https://b.example", "https://b.example/"),
        ("?again", "http://a.example/dir/x?again"),
        ("/with space.jpg", "http://a.example/with%20space.jpg"),
        ("\\写.jpg", "http://a.example/%E5%86%99.jpg"),
        ("", "http://a.example/dir/x?y"),
    ],
)
def test_redirects_lead_where_browsers_go(location: str, target: str) -> None:
    assert join("http://a.example/dir/x?y", location) == target


@pytest.mark.parametrize("location", ["file:///etc/passwd", "data:,x", "http://[x/", "mailto:a@b"])
def test_redirects_out_of_the_web_are_refused(location: str) -> None:
    with pytest.raises(ValueError, match=r"address|scheme"):
        join("http://a.example/", location)


def test_parts_of_an_address() -> None:
    assert host_of("http://[::1]:80/x") == "::1"
    assert host_of("http://u:p@a.example:81/x") == "a.example"
    assert credentials_of("http://us%20er:p%40ss@a.example/") == ("us er", "p@ss")
    assert credentials_of("http://a.example/@b") is None


@given(st.text(max_size=60))
def test_anything_is_read_or_refused_and_then_stays_as_it_is(text: str) -> None:
    for url in (text, f"http://a.example/{text}", f"http://{text}/x", f"http://a.example/?{text}"):
        if (fault := fault_of(url)) is not None:
            assert fault.isprintable()
            continue
        fetched = normalise(url)
        assert fetched.isascii()
        assert fetched.startswith(("http://", "https://"))
        assert not set(fetched) & set(" \t\r\n#")
        assert normalise(fetched) == fetched
        assert host_of(fetched)


_WORDS: Final = st.sampled_from(
    [
        *"a A 0 xn--a x1 - -- . .. / // %20 %2e %2E % ~ & &amp; &AMP; &#38; &ampere ? #".split(),
        *"' | ^ : @ \" \\ \u00e9".split(),
        " ",
    ]
)


@settings(max_examples=3000, deadline=None)
@given(
    st.sampled_from(["http://", "https://", "HTTP://", "http:/", "//"]),
    st.lists(
        st.sampled_from(["a", "b-c", "com", "1", "0x1", "A", "x--y", "-", "d" * 64]), max_size=4
    ),
    st.sampled_from(["", ":80", ":8080", "."]),
    st.lists(_WORDS, max_size=6),
)
def test_what_is_passed_as_plain_is_what_the_standard_leaves(
    scheme: str, labels: list[str], port: str, rest: list[str]
) -> None:
    text = f"{scheme}{'.'.join(labels)}{port}/{''.join(rest)}"
    if urls._PLAIN.fullmatch(text):
        assert urls._checked(urls._scalar(text)) == text
        assert urls.fault_of(text) is None


def test_most_addresses_of_real_lists_are_plain() -> None:
    plain = [
        "https://i.pinimg.com/736x/e3/f2/1a/e3f21a_photo.jpg",
        "http://cdn.shop.example.co.uk/s/files/1/0533/products/x(1).png?v=1571608637&width=300",
        "https://images.example.org/a+b,c;d=e@2x~1.jpeg",
    ]
    assert all(urls._PLAIN.fullmatch(url) for url in plain)
