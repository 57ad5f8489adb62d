"""The table of settings: one row feeds the options, the keyword arguments and the defaults."""

import inspect
import math

import pytest

from reflector import Reflector, UsageError
from reflector.settings import SETTINGS, Settings

OF_THE_COMMAND_ALONE = {"drain_timeout", "log_level"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("3s", 3.0),
        ("0.5", 0.5),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("1ms", 0.001),
        ("10m", 600.0),
        ("1h", 3600.0),
        ("7d", 604800.0),
    ],
)
def test_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert Settings.from_options({"idle_timeout": text}).idle_timeout == pytest.approx(seconds)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_default_satisfies_its_own_row_and_reads_back_as_it_is_shown(setting: object) -> None:
    row = SETTINGS[getattr(setting, "name", "")]
    if row.default is None or row.default == ():
        assert row.otherwise
    else:
        assert row.kind.check(row.default) == row.default
        assert row.kind.read(row.kind.show(row.default)) == row.default


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workers", "0"),
        ("workers", "-1"),
        ("workers", "257"),
        ("workers", "two"),
        ("workers", "1.5"),
        ("workers", ""),
        ("workers", "٣"),
        ("max_connections", "0"),
        ("max_connections", "1e3"),
        ("max_connections", "99999999999999999999"),
        ("max_per_source", "0"),
        ("max_per_source", "none"),
        ("connect_timeout", "0"),
        ("connect_timeout", "0s"),
        ("connect_timeout", "-3s"),
        ("connect_timeout", "3 s"),
        ("connect_timeout", "3sec"),
        ("connect_timeout", "1h30m"),
        ("connect_timeout", "soon"),
        ("connect_timeout", "nan"),
        ("connect_timeout", "inf"),
        ("connect_timeout", "0.1ms"),
        ("connect_timeout", "2h"),
        ("idle_timeout", "8d"),
        ("half_close_timeout", "0"),
        ("drain_timeout", "-1"),
        ("drain_timeout", "9" * 400),
        ("return_port", "0"),
        ("return_port", "65536"),
        ("return_port", "ssh"),
        ("bind", "localhost"),
        ("bind", ""),
        ("bind", "127.0.0.1:10022"),
        ("bind", "10.0.0.0/8"),
        ("log_level", "loud"),
        ("log_level", ""),
    ],
)
def test_option_of_nonsense_is_named_with_what_it_may_be(name: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings.from_options({name: text})
    message = str(caught.value)
    assert message.startswith(f"{SETTINGS[name].option} '")
    assert "expected" in message
    assert "\n" not in message


def test_the_one_of_several_that_is_wrong_is_named() -> None:
    with pytest.raises(UsageError, match=r"^--return-source 'node': expected"):
        Settings.from_options({"return_source": ("127.0.0.1", "node")})


@pytest.mark.parametrize(
    "texts",
    [
        ("reflector.example",),
        ("127.0.0.1", "127.0.0.2"),
        ("::1", "127.0.0.1", "::2"),
        ("0.0.0.0",),
        ("::",),
        ("",),
        ("fe80::1",),
    ],
)
def test_return_source_is_one_numeric_address_of_each_family(texts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"^--return-source .*"):
        Settings.from_options({"return_source": texts})
    with pytest.raises(UsageError, match=r"^return_source="):
        Settings.from_keywords(return_source=list(texts))


def test_return_source_of_both_families_is_kept() -> None:
    both = ("127.0.0.1", "::1")
    assert Settings.from_options({"return_source": both}).return_source == both
    assert Settings.from_keywords(return_source="127.0.0.1").return_source == ("127.0.0.1",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", 0),
        ("workers", True),
        ("workers", "2"),
        ("workers", 2.0),
        ("max_connections", -1),
        ("max_per_source", 0),
        ("connect_timeout", 0),
        ("connect_timeout", -0.5),
        ("connect_timeout", math.nan),
        ("connect_timeout", math.inf),
        ("connect_timeout", "3s"),
        ("connect_timeout", False),
        ("return_port", 0),
        ("bind", 5),
        ("return_source", 5),
        ("return_source", [5]),
        ("log_level", 3),
        ("allow", 5),
        ("deny", [5]),
        ("deny", "10.0.0.0/255.0.0.0"),
        ("share_ports", 1),
        ("share_ports", "yes"),
    ],
)
def test_keyword_of_nonsense_is_named_with_what_it_may_be(name: str, value: object) -> None:
    with pytest.raises(UsageError, match="expected") as caught:
        Settings.from_keywords(**{name: value})
    assert str(caught.value).startswith(f"{name}={value!r}: ")


def test_nothing_given_is_the_default() -> None:
    nothing = dict.fromkeys(SETTINGS)
    assert Settings.from_options(nothing) == Settings() == Settings.from_keywords(**nothing)


def test_a_flag_is_on_or_off() -> None:
    assert Settings.from_options({"share_ports": True}).share_ports is True
    assert Settings.from_options({"share_ports": False}).share_ports is False
    assert Settings.from_keywords(share_ports=True).share_ports is True


def test_no_drain_at_all_is_a_setting_too() -> None:
    assert Settings.from_options({"drain_timeout": "0"}).drain_timeout == 0


def test_keyword_arguments_of_a_reflector_are_the_table() -> None:
    parameters = dict(inspect.signature(Reflector).parameters)
    del parameters["mappings"]
    assert parameters.keys() == SETTINGS.keys() - OF_THE_COMMAND_ALONE
    for name, parameter in parameters.items():
        assert parameter.default == SETTINGS[name].default
