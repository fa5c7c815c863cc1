"""A page from its template: one HTML file that needs no other file."""

import json
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cnn_lightning.draw import short


def rendered(*packages: str, **values: Any) -> str:
    """The text of the first package's ``page.html.jinja``.

    Args:
        packages: The packages in whose folders ``templates`` the included files are looked for, in this order; those of
            this package come last.
        values: What the template uses.
    """
    return _environment(packages).get_template("page.html.jinja").render(**values)


@cache
def _environment(packages: tuple[str, ...]) -> Environment:
    """Reads each template once: a training writes its page for hours, and the package may be replaced meanwhile."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in (*packages, "cnn_lightning.page")]),
        autoescape=select_autoescape(("html", "jinja")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["short"] = short
    return environment


def as_json(data: Any) -> Markup:
    """Data for a script element, which it can't close."""
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
