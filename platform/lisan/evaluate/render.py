"""Templates of this room to HTML.

In: the name of a template and what it shows. Out: one page as text. Always: what is shown is escaped, and a name that
the template asks for and is not given is an error. `page` and `fertility_page` are the callers.
"""

from datetime import UTC, datetime


def render_template(template: str, **values: object) -> str:
    """Fill in a template; `made` is the time of writing."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lisan", "evaluate"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(**values, made=made)
