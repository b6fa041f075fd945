"""Templates to HTML.

In: the room and the name of a template and what it shows. Out: one page as text. Always: what is shown is escaped, and a name
that the template asks for and is not given is an error; a room's template may use `parts` and `style` of this room.
"""

from datetime import UTC, datetime


def render_template(room: str, template: str, **values: object) -> str:
    """Fill in a template of a room; `made` is the time of writing."""
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
