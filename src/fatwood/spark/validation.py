"""Data to validate on: found and compared with the data to train on, before any job."""

from __future__ import annotations

from fatwood.errors import OptionError, SchemaError
from fatwood.spark.feeds import Feed
from fatwood.spark.given import Selection, feed_of

__all__ = ["validation_feed"]


def validation_feed(validation: object, feed: Feed, selection: Selection) -> Feed | None:
    """The validation data as a feed; runs no job.

    Args:
        validation: The user's second data, or None.
        feed: The data to train on.
        selection: Of the columns of both.

    Returns:
        None without data.

    Raises:
        OptionError: It is of another form.
        SchemaError: A column is missing or of another kind than in the data to train on.
    """
    if validation is None:
        return None
    try:
        found = feed_of(validation, selection)
        feed.require_alike(found)
    except (OptionError, SchemaError) as error:
        message = f"validation: {error.message}"
        raise type(error)(message, hint=error.hint) from error
    return found
