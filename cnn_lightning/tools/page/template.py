"""A page from its template: one HTML file that needs no other file."""

import json
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
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in (*packages, "cnn_lightning.tools.page")]),
        autoescape=select_autoescape(("html", "jinja")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    return environment.get_template("page.html.jinja").render(**values)


def as_json(data: Any) -> Markup:
    """Data for a script element, which it can't close."""
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
