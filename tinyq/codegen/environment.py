"""The one Jinja environment: templates of kernels and of the network's files.

Templates see two extra globals: ``check(condition, message)``, which refuses parameters outside the
contract stated on top of the template, and nothing else; an unknown name is an error.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tinyq.resources import data_dir

if TYPE_CHECKING:
    import jinja2


class TemplateContractError(ValueError):
    """A template was given parameters that its contract excludes: a bug of the caller."""


def check(condition: bool, message: str) -> str:
    """Empty text when ``condition`` holds; raises TemplateContractError otherwise."""
    if not condition:
        raise TemplateContractError(message)
    return ""


@cache
def environment() -> jinja2.Environment:
    """Environment over ``templates/``: strict names, no trailing blanks around blocks."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(data_dir("templates")),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    env.globals["check"] = check
    return env


def render(template: str, **parameters: object) -> str:
    """Text of ``templates/<template>`` with the given parameters."""
    return environment().get_template(template).render(**parameters)
