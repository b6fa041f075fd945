"""What every page of ours is drawn with: charts, a style sheet, templates to HTML."""
