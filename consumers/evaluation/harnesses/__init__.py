"""Cached evaluation inside VLMEvalKit and lmms-eval, registered from outside: nothing of theirs is edited."""
