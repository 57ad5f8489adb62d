"""Spare legs: the socket of a check that ended cleanly serves the next one, and nobody notices."""

import pytest
from support.lab import NODE, Lab, Path, exchange, finish
from support.peer import Ending, Service


def check(path: Path) -> tuple[str, int]:
    """One whole check, client first to close; returns where the service saw it come from."""
    client, service = path.connect()
    came_from: tuple[str, int] = service.sock.getpeername()
    exchange(client, service)
    finish(client, service)
    client.close()
    service.close()
    return came_from


def test_one_spare_leg_serves_check_after_check(lab: Lab) -> None:
    path = lab.path(workers=1)
    ports = set()
    for number in range(50):
        ports.add(check(path)[1])
        path.running.wait_count("closed_finished", number + 1)
        path.running.wait_idle()
    path.running.wait_count("spare_legs", 1)
    assert len(ports) > 40  # a leg of its own each time: no port is held on to
    assert path.count("legs_connected") == 50


def test_spare_leg_tells_the_truth_when_the_service_has_gone(lab: Lab) -> None:
    path = lab.path(workers=1)
    check(path)
    path.running.wait_idle()
    port = path.service.port
    path.service.close()
    for _ in range(3):
        path.dial().expect_rst()
    path.running.wait_count("legs_refused", 3)
    path.service = lab.serve(NODE, port)
    check(path)
    path.running.wait_count("legs_connected", 2)


def test_spare_leg_is_not_used_for_another_dialled_address(lab: Lab) -> None:
    service = lab.serve(NODE)
    running = lab.reflector(f"0:{service.port}", workers=1)
    for dialled in ("127.0.0.3", "127.0.0.4", "127.0.0.3", "127.0.0.3", "127.0.0.4"):
        client = lab.dial(NODE, dialled, running.port)
        peer = service.accept()
        assert peer.sock.getpeername()[0] == dialled
        exchange(client, peer)
        finish(client, peer)
        running.wait_idle()


def test_more_dialled_addresses_than_are_remembered_are_all_served(lab: Lab) -> None:
    """Past the 64 local addresses that a worker remembers, legs are simply opened anew."""
    service = lab.serve(NODE)
    running = lab.reflector(f"0:{service.port}", workers=1)
    for number in (*range(1, 81), 80, 1, 1):
        dialled = f"127.0.1.{number}"
        client = lab.dial(NODE, dialled, running.port)
        peer = service.accept()
        assert peer.sock.getpeername()[0] == dialled
        exchange(client, peer)
        finish(client, peer)
        running.wait_idle()
        kept = 1 if number <= 64 else 0
        running.wait_count("spare_legs", kept)
        assert running.count("spare_legs") == kept


def test_spare_leg_serves_another_peer(lab: Lab) -> None:
    first = lab.serve("127.0.0.2")
    second = Service("127.0.0.5", first.port)
    lab.services.append(second)
    running = lab.reflector(f"127.0.0.3:0:{first.port}", workers=1)
    for service in (first, second, first, second):
        client = lab.dial(service.sock.getsockname()[0], "127.0.0.3", running.port)
        exchange(client, peer := service.accept())
        finish(client, peer)
        running.wait_idle()
    running.wait_count("spare_legs", 1)


@pytest.mark.parametrize("ending", ["service first", "client reset", "service reset"])
def test_only_a_clean_end_leaves_a_spare_leg(lab: Lab, ending: str) -> None:
    path = lab.path(workers=1)
    client, service = path.connect()
    exchange(client, service)
    if ending == "service first":
        finish(service, client)
    elif ending == "client reset":
        client.rst()
        service.expect_rst()
    else:
        service.rst()
        client.expect_rst()
    path.running.wait_idle()
    assert path.count("spare_legs") == 0


def test_bytes_that_come_with_the_services_fin_are_carried_before_it(lab: Lab) -> None:
    path = lab.path(workers=1)
    for number in range(20):
        client, service = path.connect()
        exchange(client, service)
        client.fin()
        service.expect_fin()
        service.send(b"last words %d" % number)
        service.fin()
        seen = client.read_to_end()
        assert (seen.data, seen.ending) == (b"last words %d" % number, Ending.FIN)
        client.close()
        path.running.wait_idle()


def test_many_checks_at_a_time_keep_a_bounded_number_of_spare_legs(lab: Lab) -> None:
    path = lab.path(workers=1)
    for _ in range(3):
        pairs = [path.connect() for _ in range(300)]
        for client, service in pairs:
            exchange(client, service)
        for client, service in pairs:
            finish(client, service)
            client.close()
            service.close()
        path.running.wait_idle()
    assert 0 < path.count("spare_legs") <= 256
    assert path.count("legs_connected") == path.count("closed_finished") == 900


def test_clients_past_a_limit_do_not_use_spare_legs_up(lab: Lab) -> None:
    path = lab.path(workers=1, max_per_source=1)
    for _ in range(20):
        check(path)
        path.running.wait_idle()
        held = path.connect()
        path.dial().expect_rst()
        finish(*held)
        path.running.wait_idle()
    path.running.wait_count("spare_legs", 1)
    assert path.count("limited_source") == 20
