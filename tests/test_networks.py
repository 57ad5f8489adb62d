"""--allow and --deny: whose connections are served, by the networks that they come from."""

import random
import shutil
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from cli_support import Foreground
from support.lab import NODE, REFLECTOR, Lab, exchange
from support.leaks import under_sanitizer
from support.namespaces import Namespace
from support.peer import Peer

import reflector
from reflector import UsageError, _core
from reflector.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
OTHER = "127.0.9.9"

AnyNetwork = IPv4Network | IPv6Network


def refused(lab: Lab, source: str, target: str, port: int) -> None:
    """A connection from `source` is reset, and nothing else comes."""
    lab.dial(source, target, port).expect_rst()


# --- real connections -----------------------------------------------------------------------------


def test_without_networks_every_peer_is_served(lab: Lab) -> None:
    path = lab.path()
    exchange(*path.connect())
    assert path.count("limited_denied") == 0


def test_denied_peer_is_reset_at_once_and_counted(lab: Lab) -> None:
    path = lab.path(deny="127.0.0.0/29")
    for _ in range(10):
        path.dial().expect_rst()
    path.service.expect_none(0.1)
    counted = ("limited_denied", "legs_limited", "closed_leg_failed", "accepted")
    for name in counted:
        path.running.wait_count(name, 10)
    assert path.count("legs_connected") == path.count("limited_source") == 0


def test_peers_outside_of_a_denied_network_are_served(lab: Lab) -> None:
    path = lab.path(deny=[f"{OTHER}/32", "127.0.8.0/24"])
    exchange(*path.connect())
    refused(lab, OTHER, REFLECTOR, path.running.port)
    refused(lab, "127.0.8.255", REFLECTOR, path.running.port)
    path.running.wait_count("limited_denied", 2)


def test_with_any_network_allowed_all_others_are_denied(lab: Lab) -> None:
    path = lab.path(allow=NODE)
    exchange(*path.connect())
    refused(lab, OTHER, REFLECTOR, path.running.port)
    refused(lab, REFLECTOR, REFLECTOR, path.running.port)
    path.running.wait_count("limited_denied", 2)


@pytest.mark.parametrize(
    ("allow", "deny", "served"),
    [
        (["127.0.0.0/24"], [NODE], False),
        ([NODE], ["127.0.0.0/24"], True),
        (["127.0.0.0/8", NODE], ["127.0.0.0/16"], True),
        (["127.0.0.0/16"], ["127.0.0.0/8", "127.0.0.0/30"], False),
        (["0.0.0.0/0"], ["127.0.0.0/8"], False),
        (["127.0.0.0/8"], ["0.0.0.0/0"], True),
        (["::/0"], [], False),
        ([], ["::/0"], True),
    ],
)
def test_the_longest_prefix_decides(
    lab: Lab, allow: list[str], deny: list[str], served: bool
) -> None:
    path = lab.path(allow=allow, deny=deny)
    if served:
        exchange(*path.connect())
    else:
        path.dial().expect_rst()


def test_networks_of_ipv4_hold_on_a_listener_of_both_families(lab: Lab) -> None:
    """There the kernel shows the peer as ::ffff:127.0.0.2."""
    service = lab.serve(NODE)
    running = lab.reflector(f"0:{service.port}", deny=OTHER, allow=["127.0.0.0/8"])
    exchange(lab.dial(NODE, REFLECTOR, running.port), service.accept())
    refused(lab, OTHER, REFLECTOR, running.port)


def test_networks_of_ipv6_hold(lab: Lab) -> None:
    path = lab.path(node="::1", target="::1", allow="::1")
    exchange(*path.connect())
    other = lab.path(node="::1", target="::1", deny="::/64")
    other.dial().expect_rst()


def test_neighbours_of_ipv6_are_told_apart(lab: Lab, namespace: Callable[[str], Namespace]) -> None:
    site = namespace("site")
    for last in ("1", "2", "3"):
        site.ip(f"address add 2001:db8::{last}/64 dev lo nodad")
    with site:
        service = lab.serve("2001:db8::2")
        running = lab.reflector(
            f"[2001:db8::1]:0:{service.port}",
            allow=["2001:db8::/32", "2001:db8::2"],
            deny=["2001:db8::2/127"],
        )
        exchange(lab.dial("2001:db8::2", "2001:db8::1", running.port), service.accept())
        refused(lab, "2001:db8::3", "2001:db8::1", running.port)
    running.wait_count("limited_denied", 1)


def test_denied_peers_take_no_place_and_no_spare_leg(lab: Lab) -> None:
    path = lab.path(deny=OTHER, max_connections=1, max_per_source=1, workers=1)
    client, service = path.connect()
    exchange(client, service)
    client.fin()
    service.expect_fin()
    service.close()
    client.expect_fin()
    client.close()
    path.running.wait_idle()
    spare = path.count("spare_legs")
    for _ in range(20):
        refused(lab, OTHER, REFLECTOR, path.running.port)
    path.running.wait_count("limited_denied", 20)
    assert path.count("spare_legs") == spare
    exchange(*path.connect())


def test_ten_thousand_networks_are_taken_and_hold(lab: Lab) -> None:
    many = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(10_000)]
    path = lab.path(deny=[*many, NODE])
    path.dial().expect_rst()
    lab.path(deny=many).connect()


def test_denied_peers_are_logged_with_the_options_that_deny_them(tmp_path: Path) -> None:
    running = Foreground(tmp_path / "log", "--deny", OTHER, "127.0.0.1:0:1")
    try:
        running.wait_ready()
        peer = Peer.dial((OTHER, 0), ("127.0.0.1", running.ports[0]))
        peer.expect_rst()
        peer.close()
        running.wait_for("last second: 1 connection reset, their network is denied")
        assert "(--allow, --deny)" in running.output()
    finally:
        running.close()


# --- what may be said -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8:0::/48", "2001:db8::/48"),
        ("::1", "::1/128"),
        ("::/0", "::/0"),
    ],
)
def test_network_is_read_as_people_write_it(text: str, network: str) -> None:
    assert Settings.from_options({"deny": (text,)}).deny == (network,)
    assert Settings.from_keywords(allow=text).allow == (network,)


def test_a_network_may_be_repeated_in_a_list() -> None:
    assert Settings.from_keywords(deny=["::1", "::1/128", "10.0.0.0/8"]).deny == (
        "::1/128",
        "10.0.0.0/8",
    )


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("192.0.2.7/31", "192.0.2.6/31"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ],
)
def test_wrong_network_is_told_with_the_one_that_was_meant(text: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings.from_options({"deny": ("172.16.0.0/12", text)})
    assert str(caught.value).startswith(f"--deny '{text}': ")
    assert f"expected {meant}" in str(caught.value)
    with pytest.raises(UsageError, match=r"^allow=") as caught:
        Settings.from_keywords(allow=["172.16.0.0/12", text])
    assert f"'{text}': " in str(caught.value)
    assert f"expected {meant}" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/8",
        "10.0.0.0/",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/-1",
        "10.0.0.0/8/8",
        "10/8",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/٨",
        "fe80::1%eth0",
        "node.example",
        "[::1]",
        "10.0.0.0 /8",
        "::" + "1" * 200,
    ],
)
def test_nonsense_is_no_network(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings.from_options({"allow": (text,)})
    message = str(caught.value)
    assert message.startswith("--allow '")
    assert len(message.splitlines()) == 1
    with pytest.raises(UsageError):
        reflector.Reflector("10022", deny=[text])


def test_network_that_is_allowed_and_denied_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"10\.0\.0\.0/8 is both allowed and denied"):
        reflector.Reflector("10022", allow=["::1", "10.0.0.0/8"], deny=["10.0.0.0/8"])


@pytest.mark.parametrize(
    "networks",
    [
        [("10.0.0.1", 8, True)],
        [("10.0.0.0", 33, True)],
        [("::", 129, False)],
        [("::ffff:10.0.0.0", 104, True)],
        [("fe80::%lo", 64, True)],
        [("", 0, True)],
        [("10.0.0.0", 8, True), ("::", 0, True), ("10.0.0.0", 8, False)],
    ],
)
def test_the_core_checks_for_itself(networks: list[tuple[str, int, bool]]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        _core.Engine([("127.0.0.1", 0, 1, 6)], networks=networks)


# --- the table, beside Python's ipaddress ---------------------------------------------------------


@pytest.fixture(scope="module")
def lookup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program around csrc/networks.c: networks and addresses in, verdicts out."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    program = tmp_path_factory.mktemp("lookup") / "lookup"
    sources = [ROOT / "tests/data/lookup.c", ROOT / "csrc/networks.c", ROOT / "csrc/address.c"]
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", f"-I{ROOT / 'csrc'}"]
    command += [*map(str, sources), "-o", str(program)]
    # Bounds and shifts are judged too, where the compiler brings what that needs.
    sanitized = subprocess.run([*command, "-fsanitize=address,undefined"], capture_output=True)
    if sanitized.returncode != 0 or under_sanitizer():
        subprocess.run(command, check=True)
    return program


def verdicts(lookup: Path, rules: dict[AnyNetwork, bool], addresses: list[str]) -> list[bool]:
    """What the table of the core says of each address."""
    lines = [
        f"{'allow' if allow else 'deny'} {network.network_address} {network.prefixlen}\n"
        for network, allow in rules.items()
    ]
    done = subprocess.run(
        [str(lookup)],
        input="".join([*lines, *(f"peer {address}\n" for address in addresses)]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line == "allow" for line in done.stdout.splitlines()]


def expected(rules: dict[AnyNetwork, bool], address: str) -> bool:
    """The same by the definition: try every prefix, from the longest on."""
    peer = ip_address(address)
    for length in range(peer.max_prefixlen, -1, -1):
        network = ip_network((peer, length), strict=False)
        if network in rules:
            return rules[network]
    return not any(rules.values())


def some_networks(rng: random.Random, count: int) -> dict[AnyNetwork, bool]:
    """Random networks of both families that nest deeply, touch, and reach both ends."""
    rules: dict[AnyNetwork, bool] = {}
    bias = rng.random()
    for _ in range(count):
        version = rng.choice((4, 6))
        width = 32 if version == 4 else 128
        # Few distinct high bits: so they meet.
        number = rng.choice((0, (1 << width) - 1, rng.getrandbits(width)))
        if rng.random() < 0.7:
            number = (number >> (width - 6)) << (width - 6) | rng.choice(
                (0, rng.getrandbits(8), (1 << (width - 6)) - 1, rng.getrandbits(width - 6))
            )
        length = rng.choice((rng.randint(0, width), rng.randint(0, 8), width - rng.randint(0, 3)))
        shift = width - length
        kind = IPv4Network if version == 4 else IPv6Network
        network = kind((number >> shift << shift, length))
        if not _is_mapped(network):
            rules[network] = rng.random() < bias
    return rules


def _is_mapped(network: AnyNetwork) -> bool:
    address = network.network_address
    return isinstance(address, IPv6Address) and address.ipv4_mapped is not None


def telling_addresses(rng: random.Random, rules: dict[AnyNetwork, bool]) -> list[str]:
    """The ends of every network, what is just outside of them, and some at random."""
    found: list[str] = ["0.0.0.0", "255.255.255.255", "::", str(IPv6Address((1 << 128) - 1))]
    for network in rules:
        width = network.max_prefixlen
        kind = type(network.network_address)
        first, last = int(network.network_address), int(network.broadcast_address)
        for number in (first, first - 1, last, last + 1, rng.randint(first, last)):
            if 0 <= number < 1 << width:
                found.append(str(kind(number)))
    found += [str(ip_address(rng.getrandbits(32))) for _ in range(50)]
    found += [str(IPv6Address(rng.getrandbits(128))) for _ in range(50)]
    return [address for address in found if not address.startswith("::ffff:")]


@pytest.mark.parametrize("seed", range(40))
def test_the_table_agrees_with_the_definition(lookup: Path, seed: int) -> None:
    rng = random.Random(seed)
    rules = some_networks(rng, rng.choice((1, 2, 5, 30, 300)))
    addresses = telling_addresses(rng, rules)
    wanted = [expected(rules, address) for address in addresses]
    assert verdicts(lookup, rules, addresses) == wanted


def test_the_table_agrees_at_ten_thousand_networks(lookup: Path) -> None:
    rng = random.Random(7)
    rules = some_networks(rng, 10_000)
    addresses = rng.sample(telling_addresses(rng, rules), 5_000)
    wanted = [expected(rules, address) for address in addresses]
    assert verdicts(lookup, rules, addresses) == wanted


def test_every_address_of_a_nest_of_all_lengths_is_told_right(lookup: Path) -> None:
    """One network of each length around one address: the deepest nest there can be."""
    number = 0x20010DB8 << 96 | 0x5555 << 64 | 0xAAAA
    rules: dict[AnyNetwork, bool] = {
        ip_network((IPv6Address(number >> (128 - n) << (128 - n) if n else 0), n)): n % 2 == 0
        for n in range(129)
    }
    addresses = [str(IPv6Address(number ^ 1 << bit)) for bit in range(128)]
    addresses.append(str(IPv6Address(number)))
    assert verdicts(lookup, rules, addresses) == [expected(rules, a) for a in addresses]
