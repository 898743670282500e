"""Base of all handlers."""

import re
from abc import ABC, abstractmethod


class Handler(ABC):
  """A part of a mission."""

  @abstractmethod
  def to_string(self):
    """Returns the name of the handler."""
    raise NotImplementedError()

  def xml_template(self):
    """Returns the template of its part of the mission."""
    raise NotImplementedError()

  def xml(self):
    """Returns the template with the attributes of the handler."""

    def value(match):
      return str(getattr(self, match[1]))

    return re.sub(r'\{\{\s*(\w+)\s*\}\}', value, self.xml_template())
