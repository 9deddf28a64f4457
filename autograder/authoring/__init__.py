"""From sources to what students and readers get, and the author's judge."""
