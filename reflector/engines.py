"""Which engine runs: the one place that knows them all."""

import logging

from reflector.engine import Engine, SpliceEngine
from reflector.errors import StartError
from reflector.mapping import Mapping
from reflector.settings import SETTINGS, Settings

log = logging.getLogger("reflector")

#: settings that only the mirror keeps
_OF_MIRROR = ("rate", "rate_per_source", "interface")


def start_engine(mappings: tuple[Mapping, ...], settings: Settings) -> Engine:
    """Bind every port and begin to accept, with the engine that the settings ask for.

    Raises StartError, with nothing left bound, where the host does not allow it, and where a
    setting is asked for that the engine does not have.
    """
    splice = SpliceEngine(mappings, settings)
    try:
        engine = splice if settings.engine == "splice" else _mirror(splice, settings)
        if engine is splice:
            _refuse_settings_of_mirror(settings)
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
        log.info("engine auto: splice, since %s", error)
        return splice
    if settings.engine == "auto":
        log.info("engine auto: mirror on %s, splice for this host itself", mirror.where)
    return mirror


def _refuse_settings_of_mirror(settings: Settings) -> None:
    for name in _OF_MIRROR:
        if getattr(settings, name):
            option = SETTINGS[name].option
            raise StartError(f"{option}: only the mirror engine has it (--engine mirror)")
