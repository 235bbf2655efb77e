"""The text tasks by name."""

from __future__ import annotations

SEEN = ("snips_intent", "trec6", "sst2", "ag_news", "subj", "sms_spam", "tweet_offensive", "tweet_emotion")
UNSEEN = ("cr", "banking77", "tweet_hate", "clinc_domain10")
UNBALANCED = ("sms_spam", "tweet_offensive")
"""Tasks whose largest class is most of the rows: macro-F1 is reported beside accuracy."""
