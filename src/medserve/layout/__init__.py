"""Pages of HTML have one head and one style: they load nothing, run nothing, and print on A4."""

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


@cache
def environment(package: str) -> Environment:
    """Jinja with a package's own templates, which extend `layout.html`; all that they are given is escaped.

    The layout shows `title`, and `notice` at the beginning and at the end.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__name__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
