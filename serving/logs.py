"""Logs as one JSON object per line, for machines that collect them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("stillface.serving")
_FIELDS = "fields"


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, the fields given with `event`, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def event(
    message: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: Any
) -> None:
    """Log what happened, with fields."""
    LOGGER.log(level, message, exc_info=error, extra={_FIELDS: fields})


def configure(level: str) -> None:
    """Send this process's logs, uvicorn's too, to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in (LOGGER.name, "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
