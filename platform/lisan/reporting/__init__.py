"""Charts, tables and templates of the HTML pages."""
