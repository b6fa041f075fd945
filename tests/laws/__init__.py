"""What must hold whatever the code looks like; a refactor changes nothing in here."""
