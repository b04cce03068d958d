"""Structured logs: one JSON object a line, on stderr."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timezone

_KEYS = re.compile(r"(?i)(bearer\s+|api[-_]?key\W+|\bsk-)\S+")


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, logger, event, the fields given as ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; of a key in a message nothing is left."""
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _KEYS.sub(r"\1[left out]", record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = _KEYS.sub(r"\1[left out]", self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json(level: str) -> None:
    """Has memlayers' serving and uvicorn log as JSON lines.

    Args:
        level: "debug", "info", "warning" or "error".
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("memlayers", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True  # the guard logs each request
