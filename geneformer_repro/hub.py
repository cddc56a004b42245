"""What a name on the hub looks like: ``user/name``, or a folder in it; also of old, ``name`` alone."""

import re
from typing import NamedTuple

_PLACE = re.compile(r"(?P<repository>[\w-][\w.-]*(/[\w-][\w.-]*)?)(/(?P<folder>[\w-][\w./-]*))?")


class Place(NamedTuple):
    """Where on the hub a model may be."""

    repository: str
    folder: str
    """In it; "" for its root."""

    @property
    def has_user(self) -> bool:
        """Whether it is of a user, as all new ones are."""
        return "/" in self.repository


def place_of(name: str) -> Place | None:
    """Return the place that a name may be; None of what is no name on the hub."""
    found = _PLACE.fullmatch(name)
    return None if found is None else Place(found["repository"], found["folder"] or "")
