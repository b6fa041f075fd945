"""Renders a Jinja template as one HTML page.

Values are escaped, and a missing value is an error. Templates of any room can use `parts` and `style` of this one.
"""

from datetime import UTC, datetime


def render_template(room: str, template: str, **values: object) -> str:
    """Return a template of a room with its values; `made` is the current time."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("lisan", room), jinja2.PackageLoader("lisan", "reporting")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(**values, made=made)
