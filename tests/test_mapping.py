"""What a MAPPING may be, and what is said of those that may not."""

import pytest

from reflector import Mapping, UsageError
from reflector.mapping import parse_mappings, returns_in_a_loop


@pytest.mark.parametrize(
    ("text", "address", "port", "return_port"),
    [
        ("10022:22", None, 10022, 22),
        ("10022", None, 10022, 10022),
        ("0:22", None, 0, 22),
        ("0", None, 0, 0),
        ("65535:65535", None, 65535, 65535),
        ("00080:0022", None, 80, 22),
        ("10022:22/tcp", None, 10022, 22),
        ("127.0.0.1:10022", "127.0.0.1", 10022, 10022),
        ("127.0.0.1:10022:22", "127.0.0.1", 10022, 22),
        ("127.0.0.1:10022:22/tcp", "127.0.0.1", 10022, 22),
        ("0.0.0.0:10022:22", "0.0.0.0", 10022, 22),
        ("[::]:10022:22", "::", 10022, 22),
        ("[::1]:10022", "::1", 10022, 10022),
        ("[::1]:10022:22", "::1", 10022, 22),
        ("[0:0::1]:10022:22", "::1", 10022, 22),
        ("[fe80::1%eth0]:10022:22", "fe80::1%eth0", 10022, 22),
        ("[::ffff:127.0.0.1]:10022:22", "127.0.0.1", 10022, 22),
    ],
)
def test_mapping_is_read_as_people_know_it_from_container_ports(
    text: str, address: str | None, port: int, return_port: int
) -> None:
    assert Mapping.parse(text) == Mapping(address, port, return_port)
    if "/" not in text:
        assert Mapping.parse(f"{text}/udp") == Mapping(address, port, return_port, "udp")


def test_bare_port_takes_the_given_return_port() -> None:
    assert Mapping.parse("10022", return_port=22) == Mapping(None, 10022, 22)
    assert Mapping.parse("127.0.0.1:10022", return_port=22) == Mapping("127.0.0.1", 10022, 22)


def test_return_port_of_the_mapping_wins_over_the_given_one() -> None:
    assert Mapping.parse("10022:80", return_port=22).return_port == 80


def test_given_address_is_for_mappings_that_name_none() -> None:
    assert Mapping.parse("10022:22", bind="127.0.0.1").address == "127.0.0.1"
    assert Mapping.parse("[::1]:10022:22", bind="127.0.0.1").address == "::1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected [ADDRESS:]PORT[:RETURN_PORT]"),
        (":", "expected [ADDRESS:]PORT[:RETURN_PORT]"),
        ("10022:", "expected [ADDRESS:]PORT[:RETURN_PORT]"),
        (":22", "expected [ADDRESS:]PORT[:RETURN_PORT]"),
        ("[::1]", "expected [ADDRESS:]PORT[:RETURN_PORT]"),
        ("[::1]:", "expected [ADDRESS:]PORT[:RETURN_PORT]"),
        ("[::1]:1:2:3", "expected [ADDRESS:]PORT[:RETURN_PORT]"),
        ("[::1", "expected [ADDRESS:]PORT[:RETURN_PORT]"),
        ("65536:22", "port '65536': expected a number, 0 to 65535"),
        ("10022:65536", "return port '65536': expected a number, 1 to 65535"),
        ("10022:0", "return port '0': expected a number, 1 to 65535"),
        ("-1:22", "'-1': expected a numeric address"),
        ("10022:-22", "return port '-22'"),
        ("+10022:22", "'+10022': expected a numeric address"),
        ("10022: 22", "return port ' 22'"),
        ("1e3", "port '1e3'"),
        ("0x16", "port '0x16'"),
        ("١٠٠٢٢", "expected a number"),
        ("9" * 5000, "expected a number"),
        ("ssh", "port 'ssh': expected a number"),
        ("192.0.2.1", "port '192.0.2.1': expected a number"),
        ("localhost:10022:22", "'localhost': expected a numeric address"),
        ("localhost:10022", "'localhost': expected a numeric address"),
        ("256.0.0.1:10022:22", "'256.0.0.1': expected a numeric address"),
        ("127.1:10022:22", "'127.1': expected a numeric address"),
        ("1:10022:22", "'1': expected a numeric address"),
        ("::1:10022:22", "stands in brackets"),
        ("[127.0.0.1:10022:22", "expected [ADDRESS:]PORT"),
        ("[fe80::1]:10022:22", "needs its interface, such as fe80::1%eth0"),
        ("[fe80::1%]:10022:22", "expected a numeric address"),
        ("[::1%lo]:10022:22", "only a link-local address"),
        ("224.0.0.1:10022:22", "multicast"),
        ("[ff02::1]:10022:22", "multicast"),
        ("255.255.255.255:10022:22", "broadcast"),
        ("10022:22/sctp", "protocol 'sctp' is not known, only /tcp and /udp are"),
        ("10022:22/UDP", "protocol 'UDP' is not known"),
        ("10022:22/udp/udp", "protocol 'udp/udp' is not known"),
        ("10022:22/", "protocol '' is not known"),
        ("10022:22/TCP/tcp", "is not known"),
        ("10022:22\n", "return port '22\\n'"),
        ("\udcff", "expected a number"),
    ],
)
def test_wrong_mapping_is_named_with_what_it_may_be(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Mapping.parse(text)
    message = str(caught.value)
    assert message.startswith("mapping ")
    assert says in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("address", "port", "return_port"),
    [
        (None, -1, 22),
        (None, 65536, 22),
        (None, 10022, -1),
        (None, 10022, 65536),
        (None, True, 22),
        (None, 10022.0, 22),
        (None, "10022", 22),
        ("", 10022, 22),
        ("localhost", 10022, 22),
        (b"\x7f\x00\x00\x01", 10022, 22),
    ],
)
def test_mapping_made_by_hand_is_checked_too(address: str, port: int, return_port: int) -> None:
    with pytest.raises(UsageError):
        Mapping(address, port, return_port)


@pytest.mark.parametrize("protocol", ["UDP", "sctp", "", None, 17])
def test_protocol_that_is_none_is_refused(protocol: str) -> None:
    with pytest.raises(UsageError, match="expected 'tcp' or 'udp'"):
        Mapping(None, 10022, 22, protocol)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10022:22", "10022:22"),
        ("10022:22/udp", "10022:22/udp"),
        ("10022:22/udp", "127.0.0.1:10022:23/udp"),
        ("10022:22/tcp", "10022:22"),
        ("10022:22", "10022:23"),
        ("10022:22", "127.0.0.1:10022:23"),
        ("[::1]:10022:22", "10022:22"),
        ("0.0.0.0:10022:22", "127.0.0.1:10022:22"),
        ("[::]:10022:22", "127.0.0.1:10022:22"),
        ("[::]:10022:22", "0.0.0.0:10022:22"),
        ("[::]:10022:22", "[::1]:10022:22"),
        ("[::1]:10022:22", "[0::1]:10022:23"),
    ],
)
def test_mappings_that_clash_are_refused_naming_both(one: str, other: str) -> None:
    with pytest.raises(UsageError, match="clash") as caught:
        parse_mappings([one, "9:9", other])
    assert str(Mapping.parse(one)) in str(caught.value)
    assert str(Mapping.parse(other)) in str(caught.value)


@pytest.mark.parametrize(
    "texts",
    [
        ["10022:22", "10023:22"],
        ["10022:22", "10022:22/udp"],
        ["10022:22/udp", "10022:23/tcp"],
        ["0:22/udp", "0:22/udp"],
        ["0:22", "0:22"],
        ["127.0.0.1:10022:22", "127.0.0.2:10022:22"],
        ["127.0.0.1:10022:22", "[::1]:10022:22"],
        ["0.0.0.0:10022:22", "[::1]:10022:22"],
        ["[fe80::1%a]:10022:22", "[fe80::1%b]:10022:22"],
    ],
)
def test_mappings_that_do_not_clash_are_served_side_by_side(texts: list[str]) -> None:
    assert len(parse_mappings(texts)) == len(texts)


def test_no_mapping_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no mapping given"):
        parse_mappings([])


def test_more_mappings_than_the_engine_takes_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 1,024"):
        parse_mappings(["0:22"] * 1025)


@pytest.mark.parametrize("given", [None, 10022, 1.5, b"10022:22"])
def test_thing_that_is_no_mapping_is_refused(given: object) -> None:
    with pytest.raises(UsageError, match="mapping"):
        parse_mappings([given])  # type: ignore[list-item]


def test_one_mapping_needs_no_list() -> None:
    assert parse_mappings("10022:22") == parse_mappings(["10022:22"])
    assert parse_mappings(Mapping(None, 10022, 22)) == parse_mappings(["10022:22"])


@pytest.mark.parametrize(
    "text",
    [
        "10022:22",
        "127.0.0.1:0:22",
        "[fe80::1%eth0]:10022:22",
        "0",
        "10053:53/udp",
        "[::1]:10053:53/udp",
        "0/udp",
    ],
)
def test_mapping_is_written_as_it_is_read(text: str) -> None:
    assert str(Mapping.parse(text)) == text
    assert Mapping.parse(str(Mapping.parse(text))) == Mapping.parse(text)


def test_free_port_is_filled_in_and_returned_to_where_none_was_named() -> None:
    assert Mapping.parse("0").with_port(40000) == Mapping(None, 40000, 40000)
    assert Mapping.parse("0:22").with_port(40000) == Mapping(None, 40000, 22)
    assert Mapping.parse("0").returns_to_itself
    assert not Mapping.parse("0:22").returns_to_itself


def test_loop_over_several_mappings_is_found() -> None:
    there, back, away, in_between = mappings = parse_mappings(
        ["10022:10023", "10023:10022", "10024:22", "10025:10024"]
    )
    assert returns_in_a_loop(there, mappings)
    assert returns_in_a_loop(back, mappings)
    assert not returns_in_a_loop(away, mappings)
    assert not returns_in_a_loop(in_between, mappings)


def test_loop_is_looked_for_within_one_protocol() -> None:
    mappings = parse_mappings(["10022:10023", "10023:10022/udp", "10024/udp"])
    assert [returns_in_a_loop(m, mappings) for m in mappings] == [False, False, True]


def test_protocol_is_told_where_it_is_not_tcp() -> None:
    assert Mapping.parse("10053:53/udp").listens_on == "*:10053/udp"
    assert Mapping.parse("[::1]:10053:53/udp").listens_on == "[::1]:10053/udp"
    assert Mapping.parse("10022:22/tcp").listens_on == "*:10022"
