"""The commands with their options, and the help.

A first argument that is no command's name belongs to `run`, so `reflector 10022:22` is
`reflector run 10022:22`.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click

from reflector._version import __version__
from reflector.errors import UsageError
from reflector.mapping import GRAMMAR, parse_mappings
from reflector.settings import SETTINGS, Settings
from reflector.terminal import error_line

_PURPOSE = """\
Connects every client back to the address that it came from, at the return port.
A health check that a node runs against itself this way crosses the network."""

_SHORT_USAGE = f"""\
Usage: reflector [OPTIONS] MAPPING...   where MAPPING is {GRAMMAR}
Example: reflector --return-port 22 10022
Try it: reflector demo    All of it: reflector --help"""

_RUN_HELP = f"""\
{_PURPOSE}

Examples:
  reflector --return-port 22 10022     port 10022 of this host, dialled from any
                                       node, is that node's own SSH service
  reflector 10022:22 10080:80          the same for SSH and HTTP
  reflector --bind 192.0.2.7 10022:22  on one address of this host only
  reflector --engine mirror 10022:22   in the kernel: a check that only connects
                                       fails too when the service does (root)
  reflector demo                       see it work on this machine first

A MAPPING is {GRAMMAR}:
  10022:22                listen on port 10022, return to port 22
  10022                   return to --return-port, or to 10022
  127.0.0.1:10022:22      listen on one address
  [::1]:10022:22          on an IPv6 one, in brackets
  [fe80::1%eth0]:10022:22 on a link-local one, with its interface
  0:22                    listen on a free port, told in the ready line
  10053:53/udp            UDP: the datagrams of each peer go back to its port 53

Peers that --allow and --deny leave out are reset. With neither, all are served;
with any --allow, only those in a network allowed. Of the networks that a peer
is in, the smallest decides: --allow 192.0.2.0/24 --deny 192.0.2.7.

Engines. splice accepts each connection and opens another one back. It needs no
privilege, but the kernel completes a handshake before the service has said a
word. mirror has the kernel turn every packet round (BPF): the service's own
answer is what the peer gets, also to a SYN, and nothing is kept per connection,
so --max-connections, --max-per-source and the timeouts do not apply; --rate and
--rate-per-source do. It sees packets before the firewall of this host does, and
two mappings must not return to the same port. This host's own connections, and
interfaces that are not mirrored, are served by splice under the same mapping.

Limits hold always. At --max-connections new connections wait until one ends.
Past --max-per-source they are reset. A return leg that is refused, unreachable
or slower than --connect-timeout resets its peer at once. UDP has no backlog and
no reset: there, datagrams are dropped. What was refused, dropped or held up is
logged, one line a second at most.

To replace a running reflector, start both with --share-ports: start the new
one, then SIGTERM the old one, which lets its connections end. The port is
served all the time. Connections that are in their handshake with the old one
as it stops accepting can be reset, unless sysctl net.ipv4.tcp_migrate_req=1
(Linux 5.14) hands them to the new one: then none is.

SIGTERM and SIGINT stop accepting, let running connections end until
--drain-timeout and reset the rest; a second one ends it now. Exit codes:
0 done, 1 this host does not allow it (port taken, privilege missing), 2 wrong
arguments."""

_DEMO_HELP = """\
Shows on this machine alone, without privilege, what a check through a reflector
sees that a check on the node does not: a service that is up, shut off from the
network, away, and back. It takes this machine's own sshd if one listens on
127.0.0.1:22, else a small service of its own. Exit code: 0 when all was as
expected, else 1."""


class _Command(click.Command):
    """A command whose help text is printed as it was written, and ends with the other commands."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\n{self.help}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        if self.name == "run":
            rows = [(name, command.short_help or "") for name, command in COMMANDS.items()]
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def dispatch(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` name and return its exit code.

    Raises UsageError for arguments that cannot be used, StartError when this host does not allow
    it.
    """
    if not arguments:
        error_line(_SHORT_USAGE)
        return 2
    name, rest = "run", list(arguments)
    prog_name = "reflector"
    if arguments[0] in COMMANDS:
        name, rest = arguments[0], list(arguments[1:])
        prog_name = f"reflector {name}"
    command = COMMANDS[name]
    try:
        return int(command.main(rest, prog_name=prog_name, standalone_mode=False) or 0)
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        raise UsageError(_one_line(error, command)) from None


def _run(mappings: tuple[str, ...], **options: Any) -> int:
    settings = Settings.from_options(options)
    try:
        parsed = parse_mappings(mappings, bind=settings.bind, return_port=settings.return_port)
    except UsageError as error:
        raise UsageError(f"{error}{_command_meant(mappings)}") from None
    from reflector import lifecycle

    return lifecycle.run(parsed, settings)


def _demo(as_json: bool) -> int:
    from reflector import demo

    return demo.run(as_json=as_json)


def _setting_options() -> list[click.Parameter]:
    """Make the options of `run` from the table of settings."""
    return [
        click.Option(
            [setting.option],
            metavar=setting.kind.metavar,
            multiple=setting.kind.repeatable,
            # None, not False: that would make the value of the others optional.
            is_flag=setting.kind.is_flag or None,
            help=f"{setting.help}  [default: {setting.default_text}]",
        )
        for setting in SETTINGS.values()
    ]


def _show_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"reflector {__version__}")
        ctx.exit()


def _one_line(error: click.ClickException, command: click.Command) -> str:
    """Tell a mistake that click found in one line, with the nearest right option."""
    if isinstance(error, click.NoSuchOption):
        names = [name for parameter in command.params for name in parameter.opts]
        nearest = get_close_matches(error.option_name, [*names, "--help"], n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else " (reflector -h lists them)"
        return f"no such option: {error.option_name}{hint}"
    if isinstance(error, click.BadOptionUsage):
        setting = SETTINGS.get(error.option_name.removeprefix("--").replace("-", "_"))
        if setting is not None and setting.kind.is_flag:
            return f"{setting.option} takes no value"
        if setting is not None:
            return f"{setting.option} needs a value: {setting.kind.expects}"
    return " ".join(error.format_message().split())


def _command_meant(mappings: Sequence[str]) -> str:
    """Hint at a command whose name was nearly typed in place of the first mapping."""
    nearest = get_close_matches(mappings[0], COMMANDS, n=1) if mappings else []
    return f" (did you mean reflector {nearest[0]}?)" if nearest else ""


_HELP_NAMES = {"help_option_names": ["-h", "--help"]}

COMMANDS: dict[str, click.Command] = {
    "run": _Command(
        "run",
        callback=_run,
        context_settings=_HELP_NAMES,
        help=_RUN_HELP,
        short_help="Reflect in the foreground; the word may be left out.",
        params=[
            click.Argument(["mappings"], nargs=-1, metavar="MAPPING..."),
            *_setting_options(),
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_version,
                help="Show the version and exit.",
            ),
        ],
    ),
    "demo": _Command(
        "demo",
        callback=_demo,
        context_settings=_HELP_NAMES,
        help=_DEMO_HELP,
        short_help="See it work on this machine, in a second and without privilege.",
        params=[click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, not a table.")],
    ),
}
