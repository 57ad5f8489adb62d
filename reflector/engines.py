"""Which engine runs: the one place that knows them all."""

import logging

from reflector.engine import Engine, SpliceEngine
from reflector.errors import StartError, UsageError
from reflector.mapping import Mapping
from reflector.settings import SETTINGS, Settings

log = logging.getLogger("reflector")

#: settings that only the mirror keeps
_OF_MIRROR = ("rate", "rate_per_source", "interface")


def start_engine(mappings: tuple[Mapping, ...], settings: Settings) -> Engine:
    """Bind every port and begin to accept, with the engine that the settings ask for.

    Raises StartError, with nothing left bound, where the host does not allow it, and UsageError
    for a setting that the engine does not have.
    """
    if settings.engine == "splice":
        for option in _options_of_mirror(settings):
            raise UsageError(f"{option}: the splice engine has no such thing (--engine mirror has)")
    splice = SpliceEngine(mappings, settings)
    try:
        engine = splice if settings.engine == "splice" else _mirror(splice, settings)
        if engine is splice:
            splice.start()
        return engine
    except BaseException:
        splice.stop()
        raise


def _mirror(splice: SpliceEngine, settings: Settings) -> Engine:
    """Return the mirror over this splice engine, both started; or that alone, and not started."""
    from reflector.mirror import MirrorEngine, MirrorUnavailable

    try:
        mirror = MirrorEngine(splice, settings)
        mirror.start()
    except MirrorUnavailable as error:
        if settings.engine == "mirror":
            raise
        for option in _options_of_mirror(settings):
            raise StartError(f"{option} takes the mirror, and {error}") from error
        log.info("engine auto: splice, since %s", error)
        return splice
    if settings.engine == "auto":
        log.info("engine auto: mirror on %s, splice for this host itself", mirror.where)
    return mirror


def _options_of_mirror(settings: Settings) -> list[str]:
    """Return those options that were given and are the mirror's alone."""
    return [SETTINGS[name].option for name in _OF_MIRROR if getattr(settings, name)]
