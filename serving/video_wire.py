"""How a video's decoder process and the server talk: a length, that many bytes of JSON, for a frame its pixels."""

from __future__ import annotations

import struct

LENGTH = struct.Struct("!I")
